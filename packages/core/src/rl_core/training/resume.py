"""Checks before a run goes on: what changed since it was started, and whether that would corrupt it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.errors import ConfigError, RLError
from rl_core.training.checkpoint import CheckpointStore
from rl_core.training.state import RunState, read_state

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig, StageConfig

logger = logging.getLogger("rl")

GUARDED: Mapping[str, str] = {
    "model": "the checkpoint holds another model",
    "tokenizer": "the same text would become other tokens",
    "data": "the checkpoint's position counts rows of other data",
    "run.seed": "rows already trained on would come again, others never",
    "algorithm.name": "the checkpoint holds another algorithm's state",
    "backend.name": "the checkpoint is in another backend's format",
}
"""Keys (and all below them) that must not change under a run, and why."""
RESTART = "restart"
"""What ``--allow`` names to train a stage again whose checkpoints are gone."""
_HARMLESS = ("model.trust_remote_code", "model.max_length")
_NOT_COMPARED = ("run.directory", "run.name")


@dataclass(frozen=True)
class Change:
    """A config value that differs from what the run was started with.

    Attributes:
        key: as on the command line, ``algorithm.learning_rate``; with stages, ``stages.NAME.…``.
        old, new: the values; None where there is none.
        reason: why it would corrupt the run; empty where it does not.
    """

    key: str
    old: Any
    new: Any
    reason: str = ""

    def __str__(self) -> str:
        return f"    {self.key}: {self.old} → {self.new}"


def has_trained(folder: Path) -> bool:
    """Whether a stage's folder holds a checkpoint or the mark of having finished."""
    return (folder / "finished.json").exists() or any((folder / "checkpoints").glob("step-*"))


def changes(old: RunConfig, new: RunConfig, *, trained: Sequence[str]) -> list[Change]:
    """What differs between two configs of a run, in the order of the new one.

    Args:
        trained: stages that have a checkpoint or have finished; only those can be corrupted.
    """
    found: list[Change] = []
    names = [[stage.name for stage in config.stages] for config in (old, new)]
    if names[0] != names[1]:
        gone = [name for name in trained if name not in names[1]]
        reason = f"what stage {gone[0]!r} trained would be left out" if gone else ""
        found.append(Change("stages", ", ".join(names[0]), ", ".join(names[1]), reason))
    before = {stage.name: stage for stage in old.stages}
    for stage in new.stages:
        if stage.name in before:
            prefix = f"stages.{stage.name}." if new.multi_stage else ""
            found += _stage_changes(before[stage.name], stage, prefix, guarded=stage.name in trained)
    return found


def environment_changes(config: RunConfig, keys: Sequence[str], *, trained: Sequence[str]) -> list[Change]:
    """What differs although the config does not: ``keys`` hold ``${env:…}``, which has another value now.

    Args:
        keys: as on the command line, without a stage's name where it stands outside of ``stages:``.
        trained: as for :func:`changes`.
    """
    found = []
    for key in keys:
        plain, stage = key, ""
        if key.startswith("stages."):
            _, index, plain = key.split(".", 2)
            stage = config.stages[int(index)].name
            key = f"stages.{stage}.{plain}"
        guarded = stage in trained if stage else bool(trained)
        found.append(Change(key, "as it was", "another value of ${env:…}", _reason(plain) if guarded else ""))
    return found


def _stage_changes(old: StageConfig, new: StageConfig, prefix: str, *, guarded: bool) -> Iterator[Change]:
    before, after = dict(_flat(old.resolved)), dict(_flat(new.resolved))
    for key in [*after, *(k for k in before if k not in after)]:
        ours, theirs = before.get(key), after.get(key)
        if ours != theirs and key not in _NOT_COMPARED:
            yield Change(f"{prefix}{key}", ours, theirs, _reason(key) if guarded else "")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{index}")
    else:
        yield prefix, value


def _reason(key: str) -> str:
    if key in _HARMLESS:
        return ""
    return next((why for guarded, why in GUARDED.items() if _is_below(key, guarded)), "")


def _is_below(key: str, above: str) -> bool:
    return key == above or key.startswith(f"{above}.")


def is_allowed(key: str, allowed: Sequence[str]) -> bool:
    """Whether ``--allow`` names a key, a section above it, or the key without its stage."""
    plain = key.split(".", 2)[-1] if key.startswith("stages.") else key
    return any(_is_below(key, one) or _is_below(plain, one) for one in allowed)


def refuse_corrupting(found: Sequence[Change], allowed: Sequence[str], directory: str | Path) -> None:
    """Log every change; stop at those that would corrupt the run and are not allowed.

    Raises:
        ConfigError: shows them, why they are refused, and how to allow them.
    """
    refused = [c for c in found if c.reason and not is_allowed(c.key, allowed)]
    for change in found:
        if change not in refused:
            logger.warning("changed since the run was started: %s", str(change).strip())
    if not refused:
        return
    lines = [f"the config has changed since {directory} was started, in a way that would corrupt it"]
    lines += [f"{change}\n        {change.reason}" for change in refused]
    allow = " ".join(f"--allow {change.key}" for change in refused)
    raise ConfigError(
        "\n".join(lines)
        + f"\n    change it back, start a new run, or go on nevertheless with:  rl resume {directory} {allow}"
    )


def newest_checkpoint(
    store: CheckpointStore, stage: StageConfig, *, directory: Path, allowed: Sequence[str] = ()
) -> Path | None:
    """The checkpoint to continue from, None where the stage has never saved one.

    Raises:
        RLError: it has, and none is left; or they are damaged, or not where they were written.
    """
    latest = store.latest()
    if latest is not None or (lost := store.lost()) is None:
        return latest
    if is_allowed(RESTART, allowed):
        logger.warning("%s: the checkpoint of step %d is gone; training from the start again", stage.name, lost)
        store.forget()
        return None
    raise RLError(
        f"stage {stage.name!r} had saved step {lost}, but there is no checkpoint in {store.folder}\n"
        "    put it back, start a new run (run.name=NEW_NAME), or train this stage from its start again with:  "
        f"rl resume {directory} --allow {RESTART}"
    )


def starting_point(
    stage: StageConfig, latest: Path | None, *, fingerprint: str, directory: Path, allowed: Sequence[str] = ()
) -> RunState | None:
    """The state of the checkpoint that a stage continues from, None for its start; checked before anything is started.

    Raises:
        RLError: its training data has changed, or it is past the stage's last step already.
    """
    if latest is None:
        return None
    state = read_state(latest)
    if state.fingerprint != fingerprint and not is_allowed("data", allowed):
        raise RLError(
            f"the training data of stage {stage.name!r} has changed since the checkpoint {latest}\n"
            "    restore the data, start a new run from the export, or go on with the new data with:  "
            f"rl resume {directory} --allow data"
        )
    if state.step > stage.run.steps:
        raise RLError(
            f"nothing to train: stage {stage.name!r} is at step {state.step} already, run.steps is {stage.run.steps}\n"
            f"    train on with: rl resume {directory} run.steps=MORE_THAN_{state.step}"
        )
    return state


def announce(stage: StageConfig, latest: Path, state: RunState, *, logged: int) -> None:
    """Say where a stage continues, and which steps are lost.

    Args:
        logged: the last step that was logged before.
    """
    if state.step == stage.run.steps:
        logger.warning("%s: nothing is left to train; its model is exported from %s", stage.name, latest)
    elif logged > state.step:
        count = logged - state.step
        steps = f"step {logged} is" if count == 1 else f"steps {state.step + 1} to {logged} are"
        logger.warning("%s: continuing from %s; %s lost and will be run again", stage.name, latest, steps)
    else:
        logger.info("%s: continuing from %s; nothing is lost", stage.name, latest)
