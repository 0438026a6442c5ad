"""Shared code of PyTorch plugins: packed micro-batches, token log-probs, model building."""
