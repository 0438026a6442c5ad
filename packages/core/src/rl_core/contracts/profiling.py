"""Optional methods of a backend or a generator for ``rl run --profile``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

FORWARD_BACKWARD = "forward_backward"
OPTIMIZER = "optimizer"


@runtime_checkable
class Profiles(Protocol):
    """Measures its own work between two calls, which are made while it is idle.

    ``rl_torch.profiling.Profiler`` does both for components that compute with torch.
    """

    def start_profile(self, trace: str | None) -> None:
        """Start measuring; with ``trace``, a path that ends in ``.trace.json.gz``, also record a trace.

        Nothing is written before :meth:`stop_profile`. Called on every rank.
        """
        ...

    def stop_profile(self) -> Mapping[str, float]:
        """Stop measuring and write the trace (Chrome's format, compressed).

        A trace that cannot be written is a warning in the log, not an error.

        Returns:
            seconds by section of the work. A backend names the parts of its optimizer steps: ``forward_backward`` (up
            to the final gradient) and ``optimizer``; the driver takes them off the time of its ``train`` calls.
        """
        ...
