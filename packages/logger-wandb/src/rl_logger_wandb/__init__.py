"""Metrics, samples and pictures for Weights & Biases."""
