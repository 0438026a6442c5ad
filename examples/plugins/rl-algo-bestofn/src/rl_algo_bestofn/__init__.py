"""Best-of-n fine-tuning for rl-core."""
