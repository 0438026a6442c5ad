"""How values of one metric become one: over ranks, and over the optimizer steps of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Metrics = dict[str, float]
"""Flat metrics by name (``train/loss``)."""


def combine(name: str, a: float, b: float) -> float:
    """Join two partial values of one metric by the naming rule of :class:`rl_core.contracts.backend.LossSpec`."""
    last = name.rpartition("/")[2]
    if last.startswith("max_"):
        return max(a, b)
    if last.startswith("min_"):
        return min(a, b)
    return a + b


def mean_metrics(updates: Sequence[Mapping[str, float]], *, prefix: str = "train") -> Metrics:
    """One line for several optimizer steps: means, but extremes for names whose last part starts with
    ``max_`` or ``min_``; names without a section get ``prefix``."""
    joined: Metrics = {}
    for name in updates[0]:
        values = [update[name] for update in updates]
        last = name.rpartition("/")[2]
        value = max(values) if last.startswith("max_") else min(values) if last.startswith("min_") else np.mean(values)
        joined[name if "/" in name else f"{prefix}/{name}"] = float(value)
    return joined
