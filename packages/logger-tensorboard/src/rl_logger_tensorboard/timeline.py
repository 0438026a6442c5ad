"""One step axis for a run of several stages: each continues where the one before it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path


class Timeline:
    """Remembers the length of every stage in a small file next to the event files.

    The file is needed after a resume, which may start in a later stage without the earlier ones.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lengths: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def start(self, stage: str, stages: tuple[str, ...], total_steps: int) -> int:
        """Record a stage.

        Returns:
            the number of steps in the stages before it.
        """
        self._lengths[stage] = total_steps
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text(json.dumps(self._lengths) + "\n", encoding="utf-8")
        os.replace(temporary, self._path)
        earlier = stages[: stages.index(stage)] if stage in stages else ()
        return sum(self._lengths.get(name, 0) for name in earlier)
