"""Starting one system on one job, and its environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compare import ours, stopwatch
from compare.measuring import Measurement, measure, unequal_maths
from compare.overhead import overhead
from compare.results import Case
from compare.rows import make_rows, write_rows
from compare.watching import Watched, watch
from compare.workloads import SIZES, WARMUP_STEPS, WORKLOADS, Job, System

BENCHMARKS = Path(__file__).resolve().parents[1]
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Systems:
    """Runs jobs in folders below ``scratch``.

    Attributes:
        trl_python: interpreter of TRL's environment; only needed for that system.
    """

    scratch: Path
    trl_python: str = ""

    def run(self, system: System, case: Case) -> Measurement:
        """One measured run.

        Raises:
            SystemFailed: the system's folder is kept.
        """
        folder, job = self._prepare(system, case, WARMUP_STEPS + SIZES[case.size].steps)
        watched, lines = self._watch(system, job, folder)
        shutil.rmtree(folder)
        return measure(watched, lines)

    def unequal_on_the_same_completions(self, case: Case, peer: System) -> list[str]:
        """Differences of a GRPO step when ``peer`` trains on what this project sampled."""
        folder, job = self._prepare("rl", case, 1)
        _, mine = self._watch("rl", job, folder, samples=True)
        samples = ours.run_directory(folder) / "samples.jsonl"
        other_folder, job = self._prepare(peer, case, 1)
        _, other = self._watch(peer, replace(job, replay=str(samples)), other_folder)
        for name in ("tokens", "trained_tokens"):
            if mine[0][name] != other[0][name]:
                return [f"{name} differ on the same completions: {mine[0][name]} and {other[0][name]}"]
        differences = unequal_maths(mine[0], other[0])
        for used in (folder, other_folder):
            shutil.rmtree(used)
        return differences

    def overhead(self, case: Case) -> dict[str, Any]:
        """Where the time of this project's steps goes; see :func:`compare.overhead.overhead`."""
        folder, job = self._prepare("rl", case, WARMUP_STEPS + SIZES[case.size].steps)
        watched, _ = self._watch("rl", job, folder, extra=stopwatch.install(folder))
        begin, end = watched.marks[WARMUP_STEPS - 1].wall, watched.marks[-1].wall
        found = overhead(watched, stopwatch.seconds_by_part(folder, begin=begin, end=end))
        shutil.rmtree(folder)
        return found

    def versions(self, system: System) -> dict[str, str]:
        """Of what the system is made of."""
        names = {"rl": ("rl-core", "ray"), "trl": ("trl", "accelerate"), "plain": ()}[system]
        code = (
            "import json, sys; from importlib.metadata import version; "
            "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
        )
        command = [self._python(system), "-c", code, "torch", "transformers", *names]
        done = subprocess.run(command, env=self._environment(system, 1), capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def _prepare(self, system: System, case: Case, steps: int) -> tuple[Path, Job]:
        from compare.models import save_model  # PyTorch, which the table does not need

        workload = WORKLOADS[case.workload]
        folder = Path(tempfile.mkdtemp(prefix=f"{case.workload}-{case.size}-{system}-", dir=self.scratch))
        model = save_model(workload, case.size, self.scratch)
        rows = write_rows(make_rows(workload, steps), folder / "rows.jsonl")
        job = Job(
            workload=case.workload,
            size=case.size,
            precision=case.precision,
            threads=case.threads,
            steps=steps,
            model=str(model),
            rows=str(rows),
            progress=str(folder / "progress.jsonl"),
        )
        return folder, job

    def _watch(
        self, system: System, job: Job, folder: Path, *, samples: bool = False, extra: Mapping[str, str] | None = None
    ) -> tuple[Watched, list[dict[str, Any]]]:
        if system == "rl":
            command, progress = ours.command(job, folder, samples=samples), ours.progress_file(folder)
        else:
            path = job.write(folder / "job.json")
            command, progress = [self._python(system), "-m", f"compare.{system}_runner", str(path)], Path(job.progress)
        watched = watch(
            command,
            environment=self._environment(system, job.threads, extra or {}),
            progress=progress,
            log=folder / "output.log",
            steps=job.steps,
            timeout_s=TIMEOUT_S,
            read_at=(WARMUP_STEPS, job.steps),
        )
        lines = [json.loads(line) for line in progress.read_text().splitlines()]
        return watched, [ours.step_numbers(line) for line in lines] if system == "rl" else lines

    def _python(self, system: System) -> str:
        return self.trl_python if system == "trl" else sys.executable

    def _environment(self, system: System, threads: int, extra: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """Of this process, with ``extra`` variables; its PYTHONPATH comes first."""
        extra = dict(extra or {})
        given = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        given |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        own = "" if system == "trl" else given.get("PYTHONPATH", "")  # nothing of this project's for TRL
        paths = [extra.get("PYTHONPATH", ""), str(BENCHMARKS), own]
        return given | extra | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def find_trl_python(root: Path) -> str:
    """Interpreter of the hatch environment ``bench-trl``, which is made if it is missing.

    Raises:
        RuntimeError: there is no ``hatch``, or the environment cannot be made.
    """
    hatch = shutil.which("hatch")
    if hatch is None:
        raise RuntimeError("hatch is not installed; pip install hatch, or give --trl-python with an interpreter")
    done = subprocess.run(
        [hatch, "run", "bench-trl:python", "-c", "import sys; print(sys.executable)"],
        cwd=root,
        # Without this environment's pins: TRL is to bring what it asks for.
        env={k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"hatch could not make the environment bench-trl\n{done.stdout}{done.stderr}")
    return done.stdout.split()[-1]
