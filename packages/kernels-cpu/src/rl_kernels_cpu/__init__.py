"""Kernels for models that are trained on the CPU, and generated from there."""
