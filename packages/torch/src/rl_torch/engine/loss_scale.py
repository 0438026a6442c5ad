"""Dynamic loss scaling for float16 (Micikevicius et al. 2018), without losing a batch to an overflow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LossScale:
    """The factor that keeps small gradients from vanishing in float16.

    It is halved when a gradient overflows, and the same batch is computed again; it is doubled after
    ``growth_interval`` steps without an overflow.
    """

    value: float = 2.0**16
    good_steps: int = 0
    growth_interval: int = 2000
    smallest: float = 1.0

    def overflowed(self) -> bool:
        """Lower the factor; False when it is as low as it gets, so that the overflow has another cause."""
        self.good_steps = 0
        if self.value <= self.smallest:
            return False
        self.value /= 2
        return True

    def stepped(self) -> None:
        """A step was taken."""
        self.good_steps += 1
        if self.good_steps >= self.growth_interval:
            self.value *= 2
            self.good_steps = 0
