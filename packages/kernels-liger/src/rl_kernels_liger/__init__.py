"""The kernel ``liger``: Triton kernels of the package liger-kernel (Hsu et al. 2024) for training on GPUs."""
