"""The JSON file with all runs: what is measured is added, so that a comparison can be made in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare.measuring import Measurement
from compare.workloads import Precision, System


@dataclass(frozen=True)
class Case:
    """What is the same for all systems of a comparison, except the precision a peer may choose."""

    workload: str
    size: str
    precision: Precision
    threads: int

    @property
    def name(self) -> str:
        return f"{self.workload}/{self.size}/{self.precision}/{self.threads}"


@dataclass
class Results:
    """Runs by case, system and repeat, in a file.

    Attributes:
        machine: what they were made on, and its peaks.
        equality: case/peer → how a GRPO step on this project's completions differed; equal where that is empty.
        overhead: case → see :func:`compare.overhead.overhead`.
    """

    path: Path
    machine: dict[str, Any] = field(default_factory=dict)
    equality: dict[str, list[str]] = field(default_factory=dict)
    overhead: dict[str, dict[str, Any]] = field(default_factory=dict)
    _runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Results:
        """The results in a file, none where there is no such file."""
        if not path.is_file():
            return cls(path)
        data = json.loads(path.read_text())
        return cls(path, data["machine"], data["equality"], data["overhead"], data["runs"])

    def save(self) -> None:
        """Replace the file."""
        data = {
            "machine": self.machine,
            "equality": self.equality,
            "overhead": self.overhead,
            "runs": dict(sorted(self._runs.items())),
        }
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.replace(self.path)

    def add(self, case: Case, system: System, repeat: int, run: Measurement, *, about: Mapping[str, Any]) -> None:
        """Keep a run, in place of an earlier one of the same name, and save the file.

        Args:
            about: what else to write down: versions, command, date.
        """
        self._runs[_key(case, system, repeat)] = run.to_json() | {"about": dict(about)}
        self.save()

    def get(self, case: Case, system: System, repeat: int) -> Measurement | None:
        """The run of that name, if there is one."""
        found = self._runs.get(_key(case, system, repeat))
        return None if found is None else Measurement.from_json(found)

    def all(self, case: Case, system: System) -> dict[int, Measurement]:
        """Repeat → run."""
        names = (key.rpartition("/") for key in self._runs)
        repeats = sorted(int(repeat) for name, _, repeat in names if name == f"{case.name}/{system}")
        return {repeat: Measurement.from_json(self._runs[_key(case, system, repeat)]) for repeat in repeats}

    def cases(self, system: System) -> Iterator[Case]:
        """Those that ``system`` has runs of, in the order of their names."""
        names = {tuple(key.split("/")[:4]) for key in self._runs if key.split("/")[4] == system}
        for workload, size, precision, threads in sorted(names):
            yield Case(workload, size, precision, int(threads))  # type: ignore[arg-type]


def _key(case: Case, system: System, repeat: int) -> str:
    return f"{case.name}/{system}/{repeat}"
