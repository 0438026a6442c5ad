"""Training backend on PyTorch FSDP2."""
