"""The run on the disk: its folder, checkpoints, metrics, environment, interrupts, log and summary."""
