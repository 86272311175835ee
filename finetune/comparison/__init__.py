"""Many runs as one comparison: its cells, the processes they run in, short probes, table, plot and page."""
