"""Kernels: packages that compute a model faster, found by the entry-point group ``rl_torch.kernels``.

``contract``  what a kernel is
``installed`` those that are installed, and which of them a config asks for
``apply``     trying them on a model, and putting those to use that compute the same
"""
