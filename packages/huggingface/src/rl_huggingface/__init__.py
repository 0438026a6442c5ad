"""Reads Hugging Face model folders and chat templates that others wrote, without PyTorch and without transformers."""
