"""What a backend or a generator may implement besides its contract, so that ``rl run --profile`` can look inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

FORWARD_BACKWARD = "forward_backward"
OPTIMIZER = "optimizer"


@runtime_checkable
class Profiles(Protocol):
    """Measures its own work between two calls, which are made while it does nothing else.

    ``rl_torch.profiling.Profiler`` does both for components that compute with torch.
    """

    def start_profile(self, trace: str | None) -> None:
        """Begin to measure; with ``trace``, a path that ends in ``.trace.json.gz``, also to record what runs.

        Nothing is written before :meth:`stop_profile`. Called on every rank.
        """
        ...

    def stop_profile(self) -> Mapping[str, float]:
        """End what :meth:`start_profile` began; write the trace (Chrome's format, compressed).

        A trace that cannot be written is a warning in the log, not an error.

        Returns:
            seconds by section of the work. A backend names the parts of its optimizer steps: ``forward_backward`` (up
            to the final gradient) and ``optimizer``; the driver takes them off the time of its ``train`` calls.
        """
        ...
