"""Logs to Weights & Biases by its own library, which uploads in a process of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import wandb
from rl_core.contracts.logger import RunInfo
from rl_core.errors import ConfigError
from rl_secrets.redaction import redact
from rl_tracker_common.config import Change, flat_config
from rl_tracker_common.files import export_folder, pictures, text_without_secrets
from rl_tracker_common.memory import TrackerMemory
from rl_tracker_common.samples import sample_table
from wandb.errors import AuthenticationError, CommError

if TYPE_CHECKING:
    from rl_logger_wandb.config import WandbConfig

_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}


class WandbLogger:
    """A W&B run for every stage, in a group with the run's name. A resumed stage continues its W&B run.

    The axis of all charts is the stage's step: steps that run again after a resume are drawn a second time.
    """

    def __init__(self, config: WandbConfig) -> None:
        """Raises ConfigError where a server needs an API key and there is none: W&B would ask on the terminal."""
        self.config = config
        self.close_timeout_s = config.close_timeout
        self._run: Any = None
        self._info: RunInfo | None = None
        self._status = "finished"
        os.environ.setdefault("WANDB_SILENT", "true")  # it writes to the terminal that rl shows progress on
        if config.mode == "online":
            _require_key(config.base_url or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")

    def start(self, info: RunInfo) -> None:
        """Raises ConnectionError where the server does not answer."""
        if self._run is not None and self._info is not None and self._info.stage == info.stage:
            self._info = info  # workers were started again
            return
        self._finish("finished")
        memory, config = TrackerMemory(info.directory, "wandb"), flat_config(info.config)
        name = memory.id_of(info.stage) or secrets.token_hex(4)
        try:
            self._run = self._begin(info, name)
        except AuthenticationError:
            raise
        except (CommError, TimeoutError) as error:
            raise ConnectionError(f"no answer from W&B: {error}") from error
        self._info = info
        _remove_links(Path(self._run.dir).parent)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        changes = memory.changes(info.stage, config)
        if changes:
            self._log_changes(changes, info)
        memory.remember(info.stage, id=name, config=config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._log(step, metrics)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        every = self.config.samples_every
        if every and rows and (step % every == 0 or step == 1):
            columns, data = sample_table(step, rows)
            self._log(step, {"samples": wandb.Table(columns=columns, data=data, allow_mixed_types=True)})

    def log_machines(self, step: int, machines: Mapping[str, Mapping[str, float]]) -> None:
        """Charts ``machines/HOST/cpu_percent`` and so on."""
        self._log(step, {f"machines/{host}/{n}": v for host, found in machines.items() for n, v in found.items()})

    def ended(self, status: str) -> None:
        self._status = status

    def close(self) -> None:
        """Uploads the files, and waits for W&B's own process."""
        self._finish(self._status)

    def _begin(self, info: RunInfo, name: str) -> Any:
        settings = wandb.Settings(
            base_url=self.config.base_url or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai",
            console="off",  # logs may hold what only rl masks
            silent=True,
            init_timeout=self.config.init_timeout,
            finish_timeout=self.config.close_timeout,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,  # the command line, which may hold secrets
            x_disable_stats=True,  # rl measures every machine itself
            x_save_requirements=False,
            symlink=False,  # a run directory holds no links
        )
        return wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            dir=info.directory,
            id=name,
            name=info.run if len(info.stages) == 1 else f"{info.run}/{info.stage}",
            group=info.run,
            job_type=info.stage,
            tags=list(self.config.tags),
            config=redact(dict(info.config)),
            allow_val_change=True,
            mode=self.config.mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is not None and values:
            self._run.log({**values, "step": step})

    def _log_changes(self, changes: Sequence[Change], info: RunInfo) -> None:
        rows = [[one.name, str(one.before), str(one.after)] for one in changes]
        table = wandb.Table(columns=["name", "before", "after"], data=rows)
        self._log(info.first_step, {"config_changes": table})

    def _finish(self, status: str) -> None:
        run, info, self._run = self._run, self._info, None
        if run is None or info is None:
            return
        drawn = {f"plots/{path.stem}": wandb.Image(str(path)) for path in pictures(info.directory)}
        if drawn:
            run.log(drawn)
        for name in ("config.yaml", "samples.jsonl"):
            text = text_without_secrets(Path(info.directory) / name)
            if text is not None:
                copy = Path(run.dir, "rl", name)  # W&B has a config.yaml of its own
                copy.parent.mkdir(exist_ok=True)
                copy.write_text(text, encoding="utf-8")
                run.save(str(copy), base_path=run.dir, policy="now")
        export = export_folder(info.directory, info.stage) if self.config.export else None
        if export is not None:
            model = wandb.Artifact(f"{run.id}-export", type="model")
            for path in sorted(one for one in export.rglob("*") if one.is_file()):
                # Uploaded from where it is, not copied.
                model.add_file(str(path), str(path.relative_to(export)), policy="immutable", skip_cache=True)
            run.log_artifact(model)
        run.finish(exit_code=_EXIT_CODES.get(status, 1))


def _remove_links(folder: Path) -> None:
    """W&B links to a log of its own in the home; a run directory that holds links is not resumed."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


def _require_key(address: str) -> None:
    given = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if not given and requests.utils.get_netrc_auth(address) is None:
        raise ConfigError(
            f"logger wandb: there is no API key for {address}\n"
            "    set WANDB_API_KEY, run `wandb login`, or choose loggers: [{name: wandb, mode: offline}]"
        )
