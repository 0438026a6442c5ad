"""The rule that a component works in a real run, and that the run continues after a stop as if it had not stopped."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rl_core.discovery.status import describe
from rl_core.errors import RLError

from rl_plugin_kit.ray_worker import ray_for_checks
from rl_plugin_kit.selection import STEPS, CannotRun, sections_for

__all__ = ["CannotRun", "check_tiny_run"]


def check_tiny_run(
    label: str, kind: str, section: Mapping[str, Any], more: Mapping[str, Any], folder: Path
) -> dict[str, float]:
    """Train two steps with the component on CPU; then again from the checkpoint of the first step.

    Args:
        label: the component, for messages.
        kind: its kind.
        section: the section that selects it.
        more: further sections, which win over what is put together.
        folder: an empty folder.

    Returns:
        the metrics of the last step.

    Raises:
        CannotRun: something that a run needs is not installed.
    """
    document = sections_for(kind, section, folder, more)
    run = {"name": "conformance", "steps": STEPS, "cpus": 2, "checkpoint_every": 1, "keep_last": STEPS}
    document["run"] = {**run, **more.get("run", {}), "directory": str(folder / "straight")}
    (folder / "config.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    with ray_for_checks():
        from rl_core.training import api

        _quietly(label, "a tiny run", lambda: api.run(str(folder / "config.yaml"), []))
        straight, stopped = folder / "straight", folder / "stopped"
        _copy_as_after_a_crash(straight, stopped)
        _quietly(label, "a tiny run, stopped after its first step and resumed,", lambda: api.resume(str(stopped), []))
    _compare(label, straight, stopped)
    return _metrics(straight)[-1]


def _quietly(label: str, what: str, call: Any) -> None:
    """Run without its output; a failure has the last lines of it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            call()
    except RLError as error:
        raise AssertionError(f"{label}: {what} fails: {error}") from error
    except Exception as error:
        raise AssertionError(f"{label}: {what} crashes: {describe(error)}") from error


def _copy_as_after_a_crash(straight: Path, stopped: Path) -> None:
    """The run directory as it would be, had the machine failed after the first step."""
    shutil.copytree(straight, stopped, symlinks=True, ignore=shutil.ignore_patterns("export", "finished.json", "ray"))
    for checkpoint in stopped.glob("checkpoints/step-*"):
        if checkpoint.name != "step-000001":
            shutil.rmtree(checkpoint)


def _compare(label: str, straight: Path, stopped: Path) -> None:
    expected, found = _metrics(straight), _metrics(stopped)
    steps = [row["step"] for row in found]
    if steps != [row["step"] for row in expected]:
        raise AssertionError(f"{label}: a resumed run logs the steps {steps}, not each once")
    for wanted, got in zip(expected, found, strict=True):
        for name in sorted(set(wanted) | set(got)):
            if not _is_a_speed(name) and wanted.get(name) != got.get(name):
                raise AssertionError(
                    f"{label}: after a stop and a resume, {name} of step {wanted['step']} is {got.get(name)}, and "
                    f"{wanted.get(name)} without the stop; what the next step depends on belongs into state() or save()"
                )
    for path in sorted((straight / "export").glob("*.safetensors")):
        if path.read_bytes() != (stopped / "export" / path.name).read_bytes():
            raise AssertionError(f"{label}: after a stop and a resume the exported weights differ ({path.name})")


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _is_a_speed(name: str) -> bool:
    return name.startswith(("time/", "memory/")) or "per_second" in name
