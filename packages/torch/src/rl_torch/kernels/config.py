"""The field ``kernels`` of a section of a config."""

from __future__ import annotations

from collections.abc import Iterator

from rl_core.config.problems import Problem

from rl_torch.kernels.contract import KernelChoice
from rl_torch.kernels.installed import unknown

KERNELS = (
    "Packages that compute the model's layers faster: all installed ones that fit (auto), none, or a list of names. "
    "Each is tested against the plain model when it is loaded, and left out where it does not compute the same."
)


def kernel_problems(choice: KernelChoice, *, section: str = "backend") -> Iterator[Problem]:
    """Names that are not installed."""
    for found in unknown(choice):
        message, _, fix = found.partition("\n    ")
        yield Problem(path=f"{section}.kernels", message=message.removeprefix("kernels: "), fix=fix)
