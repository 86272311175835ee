"""What a run trains, made visible: rows token by token, the census, and whether a run's tokens are still the same."""
