"""A finished run measured again: what is asked for, the measurement, its figures in words."""
