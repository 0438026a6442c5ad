"""From data rows to batches: prompts, generation, rewards."""
