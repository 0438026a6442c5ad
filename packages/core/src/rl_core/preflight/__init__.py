"""What ``rl check`` does beyond reading the config: it tries what a run is going to need."""
