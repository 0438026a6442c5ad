"""The address of a run's Ray cluster."""

from __future__ import annotations

import os


def ray_address(configured: str | None = None) -> str:
    """``run.address``, else ``RAY_ADDRESS``; empty: a Ray of the run's own.

    ``local`` is Ray's word for that. Given to Ray, it would start one that listens on every network interface.
    """
    address = (configured or os.environ.get("RAY_ADDRESS") or "").strip()
    return "" if address == "local" else address
