"""Packages with backends that rate jobs, as third parties would write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import acme_kit
import pluggy
from pydantic import Field
from rl_core import hookspecs
from rl_core.component import Component
from rl_core.config.sections import AlgorithmConfig, BackendConfig, Section
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.model import Role
from rl_core.contracts.rating import BackendJob, BackendRating, MemoryEstimate
from rl_core.discovery.entry_points import Discovery
from rl_core.discovery.registry import Registry
from rl_core.discovery.status import PluginStatus
from rl_core.hookspecs import hookimpl
from rl_plan import plugin as plan_plugin

GIB = 2**30

INIT = "{init: {architecture: qwen2, hidden_size: 64, layers: 2, heads: 4, extra: {vocab_size: 100}}, max_length: 32}"
TEXT = f"""
    model: {INIT}
    tokenizer: {{name: letters}}
    algorithm: {{name: pair}}
    backend:
      name: auto
    data: {{name: lines, path: train.txt}}
    run: {{name: demo, steps: 10}}
"""


class SplitConfig(Section):
    tp: int = Field(1, ge=1, description="Ranks.")
    dp: int = Field(1, ge=1, description="Ranks.")


class RoomyConfig(BackendConfig):
    adapters: ClassVar[frozenset[str]] = frozenset({"lora"})

    parallel: SplitConfig = Field(default_factory=SplitConfig, description="Ranks.")
    offload: bool = Field(False, description="Less memory.")


def memory_per_rank(config: RoomyConfig, job: BackendJob) -> MemoryEstimate | None:
    if config.parallel.dp == 13:
        raise ZeroDivisionError("division by zero")
    assert job.shape is not None
    count = job.shape.parameters().total
    tokens = config.max_tokens_per_microbatch * 2**20
    return MemoryEstimate(
        parameters=4 * count,
        gradients=4 * count,
        optimizer=8 * count,
        activations=tokens,
        logits=64 * 2**20,
        peak=16 * count + tokens,
        advice="" if config.offload else "set backend.offload: true",
    )


class OldConfig(RoomyConfig):
    def memory_per_rank(self, job: BackendJob) -> MemoryEstimate | None:
        return memory_per_rank(self, job)


class SmallConfig(BackendConfig):
    fast: bool = Field(False, description="Faster.")


class PairConfig(AlgorithmConfig):
    reference: str | None = Field(None, description="Folder.")
    broken: bool = Field(False, description="Fails to build.")

    def plan(self) -> BatchPlan:
        return BatchPlan("rollouts", 4, group_size=8, optimizer_steps=2)


class Pair:
    def __init__(self, config: PairConfig) -> None:
        if config.broken:
            raise RuntimeError("no such thing")
        self.config = config

    def roles(self) -> Sequence[Role]:
        return Role("policy", trainable=True), Role("reference", trainable=False, path=self.config.reference)


def component(kind: str, name: str, config: str, **options: Any) -> Component:
    return Component(kind, name, f"rating_kit:{name.title()}", f"rating_kit:{config}", f"The {name} {kind}", **options)


BACKENDS = {
    "rl-roomy": (component("backend", "roomy", "RoomyConfig", memory_estimate="rating_kit:memory_per_rank"),),
    "rl-old": (component("backend", "old", "OldConfig"),),
    "rl-small": (component("backend", "small", "SmallConfig"),),
    "rl-silent": (component("backend", "silent", "SmallConfig"),),
    "rl-other-roomy": (component("backend", "roomy", "RoomyConfig", memory_estimate="rating_kit:memory_per_rank"),),
    "rl-absent": (component("backend", "absent", "SmallConfig", imports=("no_such_module",)),),
}
PAIR = component("algorithm", "pair", "PairConfig")


class Rates:
    """A plugin whose hook answers what the test wants, and remembers the jobs it saw."""

    def __init__(self, answer: Callable[[BackendJob], Any]) -> None:
        self.answer = answer
        self.jobs: list[BackendJob] = []

    @hookimpl
    def rate_backends(self, job: BackendJob) -> Any:
        self.jobs.append(job)
        return self.answer(job)


def rated(name: str, score: int, *reasons: str, **more: Any) -> Callable[[BackendJob], list[BackendRating]]:
    """An answer that is the same for every job."""
    return lambda job: [BackendRating(name, score, reasons, **more)]


def registry_of(packages) -> Registry:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plan_plugin, name="rl-plan:plugin")
    kit = tuple(c for c in acme_kit.COMPONENTS if c.kind != "backend")
    statuses = [PluginStatus("kit", "acme-kit", "1.2", "ok", components=(*kit, PAIR), module="acme_kit")]
    for package, plugin in packages.items():
        if plugin is not None:
            manager.register(plugin, name=f"{package}:plugin")
        components = BACKENDS[package]
        statuses.append(PluginStatus("x", package, "3.1", "ok", components=components, module="rating_kit"))
    return Registry(Discovery(manager, tuple(statuses)))
