"""What every PyTorch plugin shares: packed micro-batches, token log-probs, model building."""
