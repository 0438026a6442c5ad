"""Putting a stage together from the components its config selected."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl_core.cluster.resources import Resources
from rl_core.cluster.workers import WorkerPool, group_topologies
from rl_core.config.turn_limits import max_tokens_per_turn
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.environment import tools_of
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import AdapterSpec, ModelInfo, ModelSpec, Role
from rl_core.contracts.tokenizer import end_token_ids, never_sampled
from rl_core.errors import ConfigError, RLError, StorageError
from rl_core.model import Model
from rl_core.rollout.ahead import AheadFeed
from rl_core.rollout.conversations import Conversations
from rl_core.rollout.cursor import DataCursor
from rl_core.rollout.encodings import EncodedRows, Encodings, Prompts
from rl_core.rollout.feed import ExamplesFeed, Feed
from rl_core.rollout.rollouts import RolloutFeed
from rl_core.rollout.router import Router
from rl_core.training.cluster_needs import resources_of
from rl_core.training.colocation import Colocation
from rl_core.training.driver import DriverParts
from rl_core.training.generation import load_generators, sampling_of, transport_of
from rl_core.training.generation_config import add_end_tokens
from rl_core.training.manifest import fsync_all
from rl_core.training.progress import working
from rl_core.transports.object_store import WeightTransport

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig
    from rl_core.contracts.algorithm import Algorithm

logger = logging.getLogger("rl")

TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True)
class Assembly:
    """A stage ready to run."""

    stage: StageConfig
    driver: DriverParts
    resources: Resources
    pool: WorkerPool
    models: Mapping[str, Model]
    router: Router | None
    sampling: SamplingParams | None
    turns: Colocation
    transport: WeightTransport | None
    encodings: EncodedRows

    @property
    def policy(self) -> Model:
        """The model that is trained, generated from and exported."""
        return self.models[policy_role(self.driver.algorithm).name]

    def publish_weights(self, version: int) -> None:
        """Give the generator the policy's current weights."""
        if self.router is not None and self.transport is not None:
            self.turns.both()
            self.router.renew_weights(self.transport, version)

    def feed(self, position: int) -> Feed:
        """The source of batches, continuing after ``position`` rows."""
        run, driver = self.stage.run, self.driver
        plan = driver.algorithm.plan()
        cursor = DataCursor(size=len(driver.rows), seed=run.seed, position=position)
        if plan.input == "examples":
            assert isinstance(self.encodings, Encodings)
            return ExamplesFeed(self.encodings, plan=plan, cursor=cursor)
        if self.router is None or self.sampling is None or driver.rewards is None:
            raise ConfigError(
                f"algorithm {self.stage.algorithm.name!r} trains on rollouts, which need a generator and rewards\n"
                "    add both sections (and, in the plugin, needs=('generator', 'rewards') to the Component)"
            )
        assert isinstance(self.encodings, Prompts)
        feed = RolloutFeed(
            driver.rows,
            algorithm=driver.algorithm,
            tokenizer=driver.tokenizer,
            plan=plan,
            cursor=cursor,
            router=self.router,
            sampling=replace(self.sampling, n=plan.group_size),
            rewards=driver.rewards,
            stage=self.stage.name,
            seed=run.seed,
            prompts=self.encodings,
            samples_per_step=run.samples_per_step,
            conversations=self.conversations(),
        )
        if not run.max_staleness:
            return feed
        return AheadFeed(feed, max_staleness=run.max_staleness, steps=run.steps)

    def conversations(self) -> Conversations | None:
        """Multi-turn generation, where the stage has an environment."""
        if self.stage.environment is None or self.driver.environment is None or self.router is None:
            return None
        return Conversations(
            self.driver.environment,
            config=self.stage.environment.config,
            router=self.router,
            tokenizer=self.driver.tokenizer,
            max_length=self.stage.model.max_length,
        )

    def export(self, target: Path) -> None:
        """Write the policy and its tokenizer as a Hugging Face folder; complete or absent.

        Raises:
            StorageError: there is no room for it.
        """
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            self.policy.export(str(temporary))
            self.driver.tokenizer.save(str(temporary))
            add_end_tokens(temporary, end_token_ids(self.driver.tokenizer))
            fsync_all(temporary)  # that the stage has finished is written next
        except (OSError, RLError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            full = os.strerror(errno.ENOSPC)
            if full in str(error):  # a library's error, or a worker's: only its text says so
                raise StorageError(
                    f"{target} cannot be written: {full}; the checkpoint that it is made of is kept\n"
                    "    make room, then make it with: rl resume RUN_DIR (or rl export RUN_DIR)"
                ) from error
            raise
        replaced = target.with_name(f".old-{target.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)  # and not removed in its place, where half of it would look like a model
        temporary.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)


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
) -> Assembly:
    """Start or reuse workers and load every role and the generator; encode examples meanwhile.

    Args:
        done: steps that were trained before.
        position: data rows that they drew.
        training: False builds no optimizers.
        policy_path: a folder to take the policy from; frozen roles keep what the stage started from.
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
    encodings = _encoded_rows(stage, driver)
    starting = f"{stage.name}: starting {resources.ranks} training and {resources.replicas} generation workers"
    done = done if training else stage.run.steps
    with working(starting), encodings.ahead(*_coming_rows(stage, driver, done, position)):
        _start_workers(stage, pool, resources)
        models = _load_models(stage, driver, pool, resources, spec, training=training, policy_path=policy_path)
        turns = Colocation(pool, shared=resources.shared)
        policy = models[policy_role(driver.algorithm).name]
        router, transport = None, None
        if stage.generator is not None:
            router = load_generators(
                stage,
                pool,
                _context(stage, resources, resources.generator_threads),
                spec,
                tokenizer_path,
                most=resources.max_replicas,
                policy=policy,
                turns=turns,
            )
            transport = transport_of(stage, pool, policy, device=resources.device)
    assembly = Assembly(
        stage=stage,
        driver=driver,
        resources=resources,
        pool=pool,
        models=models,
        router=router,
        sampling=sampling_of(stage, driver.tokenizer),
        turns=turns,
        transport=transport,
        encodings=encodings,
    )
    encodings.check(*_coming_rows(stage, driver, done, position))
    logger.info("%s: %s parameters", stage.name, f"{assembly.policy.info.parameters:,}")
    return assembly


def _start_workers(stage: StageConfig, pool: WorkerPool, resources: Resources) -> None:
    """Have the workers; each begins at once to import what it is going to host."""
    pool.prepare(resources)
    pool.warm(pool.trainers, stage.backend)
    if stage.generator is not None:
        pool.warm(pool.generators[: resources.replicas], stage.generator)


def _encoded_rows(stage: StageConfig, driver: DriverParts) -> EncodedRows:
    """What the stage's steps are made of: examples, or prompts."""
    max_length, tokenizer = stage.model.max_length, driver.tokenizer
    if driver.algorithm.plan().input == "examples" or stage.generator is None:
        return Encodings(driver.rows, algorithm=driver.algorithm, tokenizer=tokenizer, max_length=max_length)
    environment = stage.environment
    own = environment is not None and environment.config.max_tokens_per_turn is not None
    return Prompts(
        driver.rows,
        tokenizer=tokenizer,
        max_length=max_length,
        max_new_tokens=max_tokens_per_turn(stage),
        on_long=getattr(stage.algorithm.config, "on_long_prompt", "skip"),
        limit_name="environment.max_tokens_per_turn" if own else "generator.max_new_tokens",
        tools=tools_of(driver.environment.environment) if driver.environment is not None else (),
    )


def _coming_rows(stage: StageConfig, driver: DriverParts, done: int, position: int) -> tuple[DataCursor, int]:
    """The rows of the steps after ``done``: where they begin, and how many there are (with resampling: at most)."""
    plan = driver.algorithm.plan()
    cursor = DataCursor(size=len(driver.rows), seed=stage.run.seed, position=position)
    return cursor, (stage.run.steps - done) * plan.rows_per_step * (plan.max_resample_rounds + 1)


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
