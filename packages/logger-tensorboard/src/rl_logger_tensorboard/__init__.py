"""Metrics and samples for TensorBoard."""
