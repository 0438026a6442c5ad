"""The section ``run``: how long, where, and what is kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from rl_core.config.durations import Duration
from rl_core.config.gates import Gate
from rl_core.config.paths import ConfigPath
from rl_core.config.secret_sources import SecretName, SecretSource
from rl_core.config.section import Section


class KeepBestConfig(Section):
    """Checkpoints that stay because of a metric of their step."""

    metric: str = Field(min_length=1, description="A metric of the steps that are saved, e.g. eval/accuracy.")
    mode: Literal["max", "min"] = Field(description="max where more is better, min where less is (a loss).")
    count: int = Field(1, ge=1, description="How many of the best are kept.")


class RunSection(Section):
    """The section ``run``: length, machines and intervals."""

    @field_validator("require", mode="before")
    @classmethod
    def _one_or_many(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200, description="Name of the run.")
    directory: ConfigPath | None = Field(
        None, description="Run directory; default: runs/<name> in the working directory."
    )
    permissions: Literal["private", "group"] | None = Field(
        None,
        description="Who may reach the run directory, whatever the umask: private (folders 0700, files 0600) or the "
        "folder's group (2770, 0660). Default: private for a new run, and what an existing one has.",
    )
    secrets: dict[SecretName, SecretSource] = Field(
        default_factory=dict,
        description="Where ${secret:NAME} comes from: {NAME: {command: pass show hub}}, or file, or keyring.",
    )
    steps: int = Field(ge=0, description="Training steps (of a stage); 0 only evaluates.")
    require: tuple[Gate, ...] = Field(
        (),
        description="Conditions on the stage's last metrics, e.g. 'eval/accuracy >= 0.9'; else the run stops.",
        json_schema_extra={"type": ["array", "string"]},
    )
    seed: int = Field(0, ge=0, description="Seeds everything: initial weights, data order, sampling.")
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints; default: only at the end.")
    keep_last: int = Field(2, ge=1, description="Newest complete checkpoints that are kept.")
    keep_every: int | None = Field(None, ge=1, description="Checkpoints of every this many steps are kept for good.")
    keep_best: KeepBestConfig | None = Field(None, description="The best checkpoints by a metric are kept too.")
    save_before_timeout: Duration | None = Field(
        None,
        description="Time limit of the job, e.g. 3h50m: before it, a checkpoint is saved and `rl` exits with 143.",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="Versions the weights that sampled a token may be behind those that train on it. Above 0 the next "
        "steps' rollouts are sampled while the current step is trained on.",
    )
    samples_per_step: int = Field(4, ge=0, description="Rollout samples written to samples.jsonl per step.")
    measure_machines_every: float = Field(
        15.0,
        ge=0,
        description="Seconds between measurements of every machine (CPU, memory, disk, network, GPUs) for loggers that "
        "show them; 0 for never. Needs rl-system-metrics.",
    )
    address: str | None = Field(
        None,
        description="Existing Ray cluster (host:port, ray://host:port, auto; cluster: that of `rl cluster start`; "
        "local: none, whatever RAY_ADDRESS says); default: RAY_ADDRESS, else a Ray of the run's own.",
    )
    network_interface: str | None = Field(
        None,
        min_length=1,
        description="Network interface that workers on several machines use among themselves (gloo, NCCL, torch's "
        "stores), e.g. eth1; default: the one with the machine's address in Ray. Nothing on it is authenticated. "
        "Workers on one machine use loopback.",
    )
    nodes: int = Field(1, ge=1, description="Machines to spread workers over.")
    gpus: int = Field(0, ge=0, description="GPUs per machine for training; 0 trains on CPU.")
    cpus: int | None = Field(None, ge=1, description="CPU cores per machine to use; default: all.")
    worker_timeout_s: float = Field(1800.0, gt=0, description="Longest a single call to a worker may take.")
    start_timeout_s: float = Field(300.0, gt=0, description="Longest to wait for Ray and its workers to start.")
    heartbeat_timeout: Duration = Field(
        60.0,
        description="A worker process without a heartbeat for this long is hung: its stack is dumped, it is killed and "
        "replaced. Seconds, or text like 90s, 5m.",
    )
    max_failures: int | None = Field(
        3,
        ge=0,
        description="Failures of training workers that the run recovers from, each time from the newest checkpoint; "
        "one more stops it. null: no limit.",
    )
    wait_for_resources: Duration = Field(
        300.0,
        description="How long to wait for machines where the workers do not fit on those there are, at the start and "
        "after a failure. Seconds, or text like 30m, 12h.",
    )
