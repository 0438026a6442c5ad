"""Who watches the steps of a stage: times of phases, what the console shows, a profile, what a recovery took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class StepObserver:
    """Is told what the loop does; derive from it and override what matters.

    Phases nest; there are some outside of steps, too (the evaluation before the first one). All calls come from the
    loop's thread.
    """

    def step_begins(self, step: int) -> None:
        """Before the batch of ``step`` (from 1) is drawn."""

    def phase_begins(self, name: str) -> None:
        """``sampling``, ``algorithm``, ``weights``, … see :mod:`rl_core.training.phases`."""

    def phase_ends(self, name: str) -> None:
        """The phase that began last has ended, well or not."""

    def metrics(self) -> Mapping[str, float]:
        """What to log with what is logged next: the metrics of a step, or of the evaluation before the first one."""
        return {}

    def step_ends(self, metrics: Mapping[str, float]) -> None:
        """The step, its checkpoint included, has ended, well or not, with these metrics so far."""

    def close(self) -> None:
        """The stage has ended, well or not."""


class Observers:
    """Tells several observers, in their order; the end of a step in the opposite order."""

    def __init__(self, *observers: StepObserver) -> None:
        self._observers = list(observers)

    def add(self, *observers: StepObserver) -> None:
        """They are told after those there are."""
        self._observers += observers

    @contextmanager
    def step(self, step: int) -> Iterator[dict[str, float]]:
        """One step; the block puts its metrics into the dictionary."""
        metrics: dict[str, float] = {}
        for one in self._observers:
            one.step_begins(step)
        try:
            yield metrics
        finally:
            for one in reversed(self._observers):
                one.step_ends(metrics)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of a step; what is inside an inner phase belongs to that one."""
        for one in self._observers:
            one.phase_begins(name)
        try:
            yield
        finally:
            for one in reversed(self._observers):
                one.phase_ends(name)

    def metrics(self) -> dict[str, float]:
        """Those of all observers."""
        return {name: value for one in self._observers for name, value in one.metrics().items()}

    def close(self) -> None:
        """The stage has ended."""
        for one in reversed(self._observers):
            one.close()
