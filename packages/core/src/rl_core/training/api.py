"""The four things that start Ray: run, resume, evaluate, export. The command line and Python callers use these."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_secrets.redaction import RedactingFormatter, mask_known, mask_names, remember_secrets, secret_values

from rl_core.cluster.pool import WorkerPool
from rl_core.cluster.session import ray_session
from rl_core.discovery.registry import Registry, load_registry
from rl_core.errors import ConfigError, EnvironmentProblem, RLError
from rl_core.io.appending import LogFile
from rl_core.io.permissions import Permissions, apply_permissions, run_folder
from rl_core.io.values import plain
from rl_core.preflight.check import check, load_config
from rl_core.training.assembly import LoadedStage, assemble
from rl_core.training.checkpoint import CheckpointStore
from rl_core.training.cluster_needs import cluster_interface, deadlines_of, ray_needs
from rl_core.training.directory import RunDirectory, refuse_special_files, require_writable
from rl_core.training.driver import DriverParts, driver_parts
from rl_core.training.evaluation import evaluations_of
from rl_core.training.export import export_model
from rl_core.training.pipeline import Pipeline
from rl_core.training.profiling import require_profiler
from rl_core.training.progress import working
from rl_core.training.resume import Change, changes, environment_changes, has_trained, refuse_corrupting
from rl_core.training.sidecars import changed_in_environment, write_sidecars
from rl_core.training.summary import show

if TYPE_CHECKING:
    from rl_core.config.stage import RunConfig, StageConfig

logger = logging.getLogger("rl")


def run(
    config_path: str,
    overrides: Sequence[str],
    *,
    resume: bool = False,
    allowed: Sequence[str] = (),
    profile: bool = False,
) -> int:
    """Check the config and run it; with ``resume``, continue its run directory where there is one.

    Args:
        allowed: keys that may have changed although that mixes two runs (see :mod:`rl_core.training.resume`).
        profile: measure where the time goes (see :mod:`rl_core.training.profiling`).
    """
    registry = load_registry()
    if profile:
        require_profiler(registry)
    config = load_config(config_path, list(overrides), registry)
    permissions = _permissions(config)
    if permissions is None and not Path(config.directory).exists():
        permissions = "private"
    begin: dict[str, Any] = {
        "config_yaml": config.to_yaml(),
        "manifest": registry.manifest(),
        "write_sidecars": lambda folder: write_sidecars(folder, config),
    }
    with run_folder(Path(config.directory), permissions):
        if resume:
            directory = RunDirectory.claim(config.directory)
            with directory.closed_on_failure():
                if directory.begun:
                    _prepare_resume(config, directory, registry, allowed)
                else:
                    directory.begin(**begin)
        else:
            directory = RunDirectory.create(config.directory, **begin)
    return _execute(config, directory, registry, allowed, profile=profile, permissions=permissions)


def resume(run_dir: str, overrides: Sequence[str], *, allowed: Sequence[str] = (), profile: bool = False) -> int:
    """Continue a run from its newest complete checkpoint; ``allowed`` and ``profile`` as for :func:`run`."""
    registry = load_registry()
    if profile:
        require_profiler(registry)
    directory = RunDirectory.open(run_dir)
    with directory.closed_on_failure():
        config = _config_of(run_dir, overrides, registry)
        if os.path.realpath(config.directory) != os.path.realpath(run_dir):
            raise ConfigError(
                f"run.directory={config.directory} is not the run that is resumed\n"
                f"    move the whole folder instead: mv {run_dir} NEW_PLACE, then: rl resume NEW_PLACE"
            )
        _prepare_resume(config, directory, registry, allowed)
    return _execute(config, directory, registry, allowed, profile=profile, permissions=_permissions(config))


def evaluate(path: str, overrides: Sequence[str]) -> int:
    """Run the evaluators of a config on its model, or those of a run on its exported model."""
    registry = load_registry()
    if Path(path).is_dir():
        config = _config_of(path, overrides, registry)
        stage = config.stages[-1]
        policy_path = _export_of(config, stage)
    else:
        config = load_config(path, list(overrides), registry)
        stage, policy_path = config.stages[-1], None
    if not stage.evaluators:
        raise ConfigError(f"{path}: there are no evaluators\n    add evaluators: [{{name: accuracy}}] and eval_data")
    with _permitted(config):
        folder = _new_folder(Path(config.directory) / "evaluations" / time.strftime("%Y%m%d-%H%M%S"))
        with _logging(folder, config), _assembled(stage, config, registry, folder, policy_path=policy_path) as found:
            driver, loaded = found
            if driver.rollouts is not None and stage.generator is not None:
                driver.rollouts.publish(0)
            evaluations = evaluations_of(stage, driver, models=loaded.models)
            with working("evaluating"):
                metrics, samples = evaluations.run(stage.run.steps)
        metrics, samples = mask_names(metrics), [mask_known(row) for row in samples]
        (folder / "metrics.json").write_text(json.dumps(plain(metrics), indent=2) + "\n")
        (folder / "samples.jsonl").write_text("".join(json.dumps(plain(row)) + "\n" for row in samples))
    _show_evaluation(metrics, samples, folder)
    return 0


def export(run_dir: str, *, step: int | None = None, stage: str | None = None, to: str | None = None) -> int:
    """Write a checkpoint as a Hugging Face folder; by default the newest of the last stage, into its export/."""
    registry = load_registry()
    config = _config_of(run_dir, [], registry)
    names = [s.name for s in config.stages]
    if stage is not None and stage not in names:
        raise ConfigError(f"the run has no stage {stage!r}\n    choose one of: {', '.join(names)}")
    chosen = config.stages[names.index(stage)] if stage else config.stages[-1]
    folder = Path(config.stage_directory(chosen.name))
    target = Path(to) if to else folder / (f"export-{step:06d}" if step is not None else "export")
    if step is None and to is None and target.is_dir():
        _say(f"already exported: {target}")
        return 0
    require_writable(target)
    store = CheckpointStore.of(folder, chosen.run, stage=chosen.name, owner=False)
    logs = Path(config.directory) / "logs"
    with store.reading(step) as source:  # a run that goes on does not remove it
        if source is None:
            raise RLError(f"{run_dir}: stage {chosen.name!r} has no complete checkpoint to export yet")
        with _logging(logs, config), _assembled(chosen, config, registry, folder, training=True) as (driver, loaded):
            loaded.policy.restore(str(source / loaded.policy.role.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            export_model(loaded.policy, driver.tokenizer, target)
    _say(f"exported {source.name} of stage {chosen.name!r}: {target}")
    return 0


def _prepare_resume(config: RunConfig, directory: RunDirectory, registry: Registry, allowed: Sequence[str]) -> None:
    refuse_special_files(directory.path)
    with _permitted(config), _logging(directory.logs, config):
        refuse_corrupting(_changes(config, directory, registry), allowed, directory.path)
        write_sidecars(directory.path, config)
        directory.replace_config(config.to_yaml())


def _changes(config: RunConfig, directory: RunDirectory, registry: Registry) -> list[Change]:
    """What differs from the config that the run was started or last resumed with."""
    saved = directory.path / "config.yaml"
    trained = [s.name for s in config.stages if has_trained(Path(config.stage_directory(s.name)))]
    elsewhere = environment_changes(config, changed_in_environment(directory.path, config), trained=trained)
    if saved.read_text(encoding="utf-8") == config.to_yaml():
        return elsewhere
    before = check(str(saved), [f"run.directory={directory.path.resolve()}"], registry)
    if before.config is None:
        problems = "\n".join(str(problem) for problem in before.errors)
        raise ConfigError(
            f"{saved} can no longer be read, so the new config cannot be compared with it\n{problems}\n"
            "    install the versions in plugins.json, or start a new run"
        )
    return [*changes(before.config, config, trained=trained), *elsewhere]


def _execute(
    config: RunConfig,
    directory: RunDirectory,
    registry: Registry,
    allowed: Sequence[str] = (),
    *,
    profile: bool,
    permissions: Permissions | None,
) -> int:
    try:
        with run_folder(directory.path, permissions):
            apply_permissions(directory.path, permissions)
            try:
                with _logging(directory.logs, config):
                    outcome = Pipeline(config, directory, registry, allowed=allowed, profile=profile).run()
            finally:
                apply_permissions(directory.path, permissions)  # Ray's logs are copied with modes of their own
    finally:
        directory.close()
    show(outcome)
    return 0


def _permissions(config: RunConfig) -> Permissions | None:
    return config.stages[0].run.permissions


def _permitted(config: RunConfig) -> AbstractContextManager[None]:
    """What is written in the run directory within the block may be reached by those that the config says."""
    return run_folder(Path(config.directory), _permissions(config))


def _config_of(run_dir: str, overrides: Sequence[str], registry: Registry) -> RunConfig:
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} is not a run directory (it has no config.yaml)\n    list runs with: rl runs")
    refuse_special_files(Path(run_dir))
    place = f"run.directory={Path(run_dir).resolve()}"  # it may have been moved since it was made
    return load_config(str(path), [place, *overrides], registry)


def _new_folder(wanted: Path) -> Path:
    """Make ``wanted``, or one with ``-2``, ``-3``, … at the end where another process was faster."""
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise EnvironmentProblem(f"cannot make the folder {folder}: {error.strerror or error}") from error
        else:
            return folder


def _export_of(config: RunConfig, stage: StageConfig) -> str:
    export_folder = Path(config.export_directory(stage.name))
    if not export_folder.is_dir():
        raise RLError(
            f"{config.directory}: stage {stage.name!r} has no export yet\n"
            f"    make one with: rl export {config.directory}"
        )
    return str(export_folder)


@contextmanager
def _assembled(
    stage: StageConfig,
    config: RunConfig,
    registry: Registry,
    folder: Path,
    *,
    training: bool = False,
    policy_path: str | None = None,
) -> Iterator[tuple[DriverParts, LoadedStage]]:
    deadlines = deadlines_of(stage.run)
    logs = folder / "logs" if folder.name != "logs" else folder
    logs.mkdir(parents=True, exist_ok=True)
    with ray_session(ray_needs(config), logs) as ray:
        driver = driver_parts(stage, registry)
        pool = WorkerPool(
            manifest=registry.manifest(),
            logs=logs,
            deadlines=deadlines,
            network_interface=cluster_interface(config.stages[0].run),
            loss=ray.loss,
        )
        ray.join()
        try:
            loaded = assemble(
                stage, driver=driver, pool=pool, directory=folder, training=training, policy_path=policy_path
            )
            yield driver, loaded
        finally:
            driver.close()
            pool.close()


class _Screen(logging.StreamHandler):
    """Writes to the ``sys.stderr`` of the moment, which a live table redirects to above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


@contextmanager
def _logging(folder: Path, config: RunConfig) -> Iterator[None]:
    """Everything to ``rl.log``; to the screen what a reader wants to see: all of ours where it is not a terminal.

    Without secrets, those included that only a config model knows of.
    """
    dumped = [choice.config.model_dump() for stage in config.stages for choice in stage.choices()]
    remember_secrets(value for one in dumped for value in secret_values(one))
    folder.mkdir(parents=True, exist_ok=True)
    file = LogFile(folder / "rl.log")
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen = _Screen()
    screen.setFormatter(RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    screen.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    screen.addFilter(lambda record: record.name.partition(".")[0].startswith("rl") or record.levelno >= logging.ERROR)
    root = logging.getLogger()
    before = root.level
    root.addHandler(file)
    root.addHandler(screen)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(before)
        for handler in (file, screen):
            root.removeHandler(handler)
            handler.close()


def _show_evaluation(metrics: dict[str, float], samples: list[dict], folder: Path) -> None:
    from rich.console import Console

    from rl_core.training.summary import samples_table

    console = Console()
    if samples:
        console.print(samples_table(samples))
    for name, value in metrics.items():
        console.print(f"{name:<32} {value:.6g}", highlight=False)
    console.print(f"saved in {folder}", soft_wrap=True, highlight=False)


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, soft_wrap=True, highlight=False, markup=False)
