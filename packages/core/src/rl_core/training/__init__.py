"""A run: its directory, its checkpoints and the one training loop."""
