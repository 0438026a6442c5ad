"""Held-out loss and held-out accuracy."""
