"""Rollouts: prompts, completions by generators, environments and rewards, as batches to train on."""
