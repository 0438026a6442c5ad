"""Putting a stage together from the components its config selected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl_core.cluster.pool import WorkerPool, group_topologies
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.model import AdapterSpec, ModelInfo, ModelSpec, Role
from rl_core.contracts.rollout import RolloutWorkers
from rl_core.contracts.tokenizer import never_sampled
from rl_core.errors import ConfigError, RLError
from rl_core.model import Model
from rl_core.training.cluster_needs import resources_of
from rl_core.training.colocation import Colocation
from rl_core.training.driver import DriverParts
from rl_core.training.feeds import source_of
from rl_core.training.observers import Observers
from rl_core.training.progress import working

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig
    from rl_core.contracts.algorithm import Algorithm
    from rl_core.contracts.feed import BatchSource

logger = logging.getLogger("rl")

TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True)
class LoadedStage:
    """What of a stage lives in workers, and what feeds it.

    Attributes:
        models: every role by its name.
        policy: the one that is trained, generated from and exported.
        memory: of GPUs that trainers and generators share.
        source: where its batches come from.
    """

    models: Mapping[str, Model]
    policy: Model
    memory: Colocation
    source: BatchSource


def policy_role(algorithm: Algorithm) -> Role:
    """The first trainable role."""
    return next(role for role in algorithm.roles() if role.trainable)


def assemble(
    stage: StageConfig,
    *,
    driver: DriverParts,
    pool: WorkerPool,
    directory: Path,
    training: bool = True,
    policy_path: str | None = None,
    done: int = 0,
    position: int = 0,
    observers: Observers | None = None,
) -> LoadedStage:
    """Start or reuse workers and load every role and the generator; encode rows meanwhile.

    Args:
        done: steps that were trained before.
        position: data rows that they drew.
        training: False builds no optimizers.
        policy_path: a folder to take the policy from; frozen roles keep what the stage started from.
        observers: of the steps, during which GPUs are handed over.
    """
    resources = resources_of(stage)
    tokenizer_path = directory / TOKENIZER_FOLDER
    driver.tokenizer.save(str(tokenizer_path))
    spec = ModelSpec(
        path=stage.model.path,
        init=stage.model.init.model_dump() if stage.model.init else None,
        vocab_size=driver.tokenizer.vocab_size,
        special_tokens=dict(driver.tokenizer.special_tokens),
        trust_remote_code=stage.model.trust_remote_code,
        seed=stage.run.seed,
        max_length=stage.model.max_length,
        never_sampled=never_sampled(driver.tokenizer),
    )
    source = source_of(stage, driver)
    steps = stage.run.steps - done if training else 0
    starting = f"{stage.name}: starting {resources.ranks} training and {resources.replicas} generation workers"
    with source.encoding(position=position, steps=steps), working(starting):
        _start_workers(stage, pool, resources)
        models = _load_models(stage, driver, pool, resources, spec, training=training, policy_path=policy_path)
        policy = models[policy_role(driver.algorithm).name]
        memory = Colocation(pool, shared=resources.shared, phase=(observers or Observers()).phase)
        if driver.rollouts is not None and stage.generator is not None:
            workers = RolloutWorkers(
                pool=pool,
                most=resources.max_replicas,
                policy=policy,
                model=spec,
                tokenizer_path=tokenizer_path,
                context=_context(stage, resources, resources.generator_threads),
                memory=memory,
            )
            driver.rollouts.start(workers)
    logger.info("%s: %s parameters", stage.name, f"{policy.info.parameters:,}")
    return LoadedStage(models=models, policy=policy, memory=memory, source=source)


def _start_workers(stage: StageConfig, pool: WorkerPool, resources: Resources) -> None:
    """Have the workers; each begins at once to import what it is going to host."""
    pool.prepare(resources)
    pool.warm(pool.trainers, stage.backend)
    if stage.generator is not None:
        pool.warm(pool.generators[: resources.replicas], stage.generator)


def _load_models(
    stage: StageConfig,
    driver: DriverParts,
    pool: WorkerPool,
    resources: Resources,
    spec: ModelSpec,
    *,
    training: bool,
    policy_path: str | None,
) -> dict[str, Model]:
    context = _context(stage, resources, resources.threads)
    topology = group_topologies(pool.build(pool.trainers, stage.backend, kind="train", context=context))
    algorithm = driver.algorithm
    steps = stage.run.steps * algorithm.plan().optimizer_steps
    models = {}
    policy = policy_role(algorithm).name
    for role in sorted(algorithm.roles(), key=lambda role: role.name != policy):
        if role.name == policy and policy_path:
            role = replace(role, path=policy_path)
        if not training:
            role = replace(role, trainable=False)
        optimizer = algorithm.optimizer(role.name, steps) if role.trainable else None
        source = replace(spec, path=role.path, init=None) if role.path else spec
        if training and stage.model.adapter is not None:
            role, source = _with_adapter(role, source, stage.model.adapter.spec(steps, seed=stage.run.seed), policy)
        calls = [w.call.remote("load", role, source, optimizer) for w in pool.trainers]
        info: ModelInfo = pool.get(calls, starting=True, what=f"loading {role.name}")[0]
        _check_fit(stage, spec, info)
        models[role.name] = Model(role, info=info, pool=pool, workers=pool.trainers, topology=topology)
    return models


def _with_adapter(role: Role, source: ModelSpec, adapter: AdapterSpec, policy: str) -> tuple[Role, ModelSpec]:
    """Trainable roles get ``adapter``; a frozen copy of the policy's model becomes the policy without it."""
    if role.trainable:
        return role, replace(source, adapter=adapter)
    same_model = role.path is None and role.head == "lm"
    return (replace(role, base_of=policy) if same_model else role), source


def _context(stage: StageConfig, resources: Resources, threads: int) -> WorkerContext:
    return WorkerContext(
        rank=0,
        world_size=1,
        master_address="",
        master_port=0,
        device=resources.device,
        threads=threads,
        seed=stage.run.seed,
        shares_device=resources.shared,
    )


def _check_fit(stage: StageConfig, spec: ModelSpec, info: ModelInfo) -> None:
    if info.max_length and stage.model.max_length > info.max_length:
        raise ConfigError(
            f"model.max_length {stage.model.max_length} is more than the model's context of {info.max_length} tokens\n"
            f"    set model.max_length={info.max_length} or lower"
        )
    if spec.vocab_size > info.vocab_size:
        raise RLError(
            f"the tokenizer has {spec.vocab_size} tokens but the model's vocabulary has {info.vocab_size}\n"
            "    use the tokenizer the model was trained with"
        )
