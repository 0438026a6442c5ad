"""``rl run --profile``: a table of where the time of a stage's steps goes, and a trace of a few of them.

A few steps, from the second on, are traced by the workers that can. They are slower, so the table is of the
others where there are any: traced are fewer than half of the steps, or one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.errors import Interrupted, WorkerDied
from rl_core.io.files import write_atomic
from rl_core.training.observers import Observers, StepObserver
from rl_core.training.phases import REST, TRAIN

from rl_reports.phases import LABELS, Phases, timed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rl_core.cluster.pool import WorkerPool
    from rl_core.config.stage import StageConfig

logger = logging.getLogger("rl")

TRACED_STEPS = 3
"""At most."""
_NEGLIGIBLE = 0.0005
"""Share of a step below which a phase is shown as part of the rest."""


@dataclass(frozen=True)
class Report:
    """What a profile found.

    Attributes:
        folder: where it is written.
        steps: number of steps in the table.
        seconds: of those steps, by phase; they add up to their wall time.
        traced: steps that were traced.
        traces: the files.
        notes: what could not be measured.
    """

    folder: Path
    stage: str
    steps: int
    seconds: Mapping[str, float]
    traced: Sequence[int] = ()
    traces: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def total(self) -> float:
        """Seconds of all steps in the table."""
        return sum(self.seconds.values())

    def rows(self, *, least: float = _NEGLIGIBLE) -> list[tuple[str, str, float, float]]:
        """``(phase, label, seconds per step, share of the step)``; shares below ``least`` are in the rest."""
        shown = {name: s for name, s in self.seconds.items() if s > least * self.total or name == REST}
        shown[REST] = shown.get(REST, 0.0) + self.total - sum(shown.values())
        order = [*(name for name in LABELS if name in shown), *sorted(set(shown) - set(LABELS))]
        return [(name, LABELS.get(name, name), shown[name] / self.steps, shown[name] / self.total) for name in order]

    def write(self) -> None:
        """``phases.json`` and ``phases.md``."""
        document = {
            "stage": self.stage,
            "steps": self.steps,
            "step_s": self.total / self.steps,
            "phases": [{"name": n, "label": at, "step_s": s, "share": share} for n, at, s, share in self.rows(least=0)],
            "traced_steps": list(self.traced),
            "traces": list(self.traces),
            "notes": list(self.notes),
        }
        write_atomic(self.folder / "phases.json", json.dumps(document, indent=2) + "\n")
        write_atomic(self.folder / "phases.md", self.markdown())

    def markdown(self) -> str:
        """The table for a reader."""
        lines = [f"# {self.title}", "", "| phase | seconds per step | share |", "|---|--:|--:|"]
        lines += [f"| {label} | {seconds:.4f} | {share:.1%} |" for _, label, seconds, share in self.rows()]
        lines += [f"| step | {self.total / self.steps:.4f} | 100.0% |", ""]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def table(self) -> RenderableType:
        """The table for the terminal, with its notes and the place of the files."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(show_footer=True)
        table.add_column("phase", footer="step")
        table.add_column("seconds", justify="right", footer=f"{self.total / self.steps:.4f}")
        table.add_column("share", justify="right", footer="100.0%")
        for _, label, seconds, share in self.rows():
            table.add_row(label, f"{seconds:.4f}", f"{share:.1%}")
        notes = [Text(note) for note in self.notes]
        return Group(Text(self.title, style="italic"), table, *notes, Text(f"{'profile':<12} {self.folder}"))

    @property
    def title(self) -> str:
        """Of the table: the stage and the number of steps."""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        return f"Where the time of a step goes: stage {self.stage!r}, mean of {steps}"


@dataclass
class Profile(StepObserver):
    """Profiles the steps of a stage; a context manager that writes the report at the end.

    Attributes:
        folder: for everything that is written; made by the first step.
        phases: the stopwatch, an observer of its own that comes after this one.
        report: what was found; None before :meth:`finish`, and without steps.
    """

    stage: StageConfig
    pool: WorkerPool
    folder: Path
    phases: Phases = field(default_factory=Phases)
    report: Report | None = None
    _begun: list[int] = field(default_factory=list)
    _traced: list[int] = field(default_factory=list)
    _tracing: bool = False
    _totals: dict[bool, tuple[int, dict[str, float]]] = field(default_factory=dict)  # by whether they were traced
    _started: list[tuple[Any, Any]] = field(default_factory=list)  # generators and their answers
    _notes: list[str] = field(default_factory=list)

    @property
    def observers(self) -> tuple[StepObserver, ...]:
        """Itself first: what it asks of workers between two steps is in the time of neither."""
        return (self, self.phases)

    def timed(self, models: Mapping[str, Any], observers: Observers, *, policy: str) -> Mapping[str, Any]:
        """See :func:`rl_reports.phases.timed`."""
        return timed(models, observers, policy=policy)

    def render(self) -> RenderableType | None:
        """What was found, for the end of the run; None without a step."""
        return None if self.report is None else self.report.table()

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Workers that failed cannot be asked for what they measured."""
        if kind is None or issubclass(kind, Interrupted):
            self.finish()

    def step_begins(self, step: int) -> None:
        """Between two steps: begin or end measuring what ``step`` and the next ones need."""
        number, last = len(self._begun), self.stage.run.steps
        if number == 0:
            self.folder.mkdir(parents=True)
            self.phases.take()  # of what was before the first step
            self._begin(trace=step == last)
        elif number == 1:
            self._end()
            self._begin(trace=True)
        elif number == 1 + min(TRACED_STEPS, max(1, (last - self._begun[0]) // 2)):
            self._end()
            self._begin(trace=False)
        self._begun.append(step)
        if self._tracing:
            self._traced.append(step)

    def finish(self) -> None:
        """After the last step: write what was found."""
        if not self._begun:
            return
        self._end()
        steps, seconds = self._totals.get(False) or self._totals.get(True) or (0, {})
        if not steps:
            return
        self.report = Report(
            folder=self.folder,
            stage=self.stage.name,
            steps=steps,
            seconds=seconds,
            traced=self._traced,
            traces=sorted(path.name for path in self.folder.glob("*.trace.json.gz")),
            notes=self._notes,
        )
        try:
            self.report.write()
        except OSError as error:
            logger.warning("cannot write the profile to %s: %s", self.folder, error.strerror or error)
        else:
            logger.info("%s: profile of the steps in %s", self.report.stage, self.folder)

    def _begin(self, *, trace: bool) -> None:
        pool, stage = self.pool, self.stage
        folder = str(self.folder.resolve()) if trace else None
        can = pool.get([w.start_profile.remote(folder) for w in pool.trainers], what="starting the profile")
        if not all(can):
            self._note(
                f"backend {stage.backend.name} does not profile itself (start_profile, stop_profile): no trace of it, "
                f"and forward, backward and optimizer are in one row, {LABELS[TRAIN]!r}"
            )
        self._tracing = trace
        # Not waited for: with run.max_staleness they have completions to end first.
        self._started = [(w, w.start_profile.remote(folder)) for w in pool.generators] if trace else []

    def _end(self) -> None:
        pool = self.pool
        stopped = pool.get([w.stop_profile.remote() for w in pool.trainers], what="ending the profile")
        self.phases.move(TRAIN, stopped[0])
        for generator, started in self._started:
            self._end_generator(generator, started)
        steps, seconds = self.phases.take()
        before, sums = self._totals.get(self._tracing, (0, {}))
        merged = {name: sums.get(name, 0.0) + seconds.get(name, 0.0) for name in {**sums, **seconds}}
        self._totals[self._tracing] = before + steps, merged
        self._started = []

    def _end_generator(self, generator: Any, started: Any) -> None:
        pool, stage = self.pool, self.stage
        try:
            can, _ = pool.get([started, generator.stop_profile.remote()], what="ending the profile")
        except WorkerDied as death:
            if death.role == "train":
                raise
            logger.debug("%s", death)  # the router replaces it when it next needs it
            return
        if not can and stage.generator is not None:
            self._note(f"generator {stage.generator.name} does not profile itself: no trace of it")

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)


def free_folder(wanted: Path) -> Path:
    """``wanted``, or with ``-2``, ``-3``, … at the end where a profile is there already."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
