"""What a tracker's logger remembers between the starts of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_core.io.files import read_object, write_atomic

from rl_tracker_common.config import Change, Scalar, config_changes


class TrackerMemory:
    """``<run directory>/trackers/NAME.json``: per stage, its run's id in the tracker and its last config."""

    def __init__(self, directory: str | Path, name: str) -> None:
        """Read it, where the run has been started before.

        Raises:
            ValueError: it is damaged.
        """
        self.path = Path(directory) / "trackers" / f"{name}.json"
        self._known: dict[str, Any] = read_object(self.path) if self.path.exists() else {}

    def id_of(self, stage: str) -> str | None:
        """The id that :meth:`remember` was given."""
        return self._known.get(stage, {}).get("id")

    def changes(self, stage: str, config: Mapping[str, Scalar]) -> list[Change]:
        """What is different from the last start; nothing at the first one."""
        before = self._known.get(stage, {}).get("config")
        return [] if before is None else config_changes(before, config)

    def remember(self, stage: str, *, id: str, config: Mapping[str, Scalar]) -> None:
        """On disk when it returns; ``config`` holds no secrets any more."""
        self._known[stage] = {"id": id, "config": dict(config)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self._known, ensure_ascii=False) + "\n")
