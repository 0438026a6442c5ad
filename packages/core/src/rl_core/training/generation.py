"""Starting a stage's generators: loaded, behind a router, with a way for new weights to reach them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_core.cluster.pool import WorkerPool
from rl_core.config.generators import weight_transport
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_core.contracts.tokenizer import Tokenizer, end_token_ids
from rl_core.errors import ConfigError, DataError
from rl_core.model import Model
from rl_core.rollout.conversations import Conversations
from rl_core.rollout.router import Router
from rl_core.training.colocation import Colocation
from rl_core.training.replacements import GeneratorReplacements
from rl_core.transports.collective import Collective
from rl_core.transports.ipc import Ipc
from rl_core.transports.object_store import ObjectStore, WeightTransport

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig


@dataclass(frozen=True)
class Generation:
    """How a stage's completions are made.

    Attributes:
        transport: the way of new weights to the generators.
        sampling: that of rollouts.
        conversations: multi-turn generation, where the stage has an environment.
    """

    router: Router
    transport: WeightTransport
    sampling: SamplingParams
    conversations: Conversations | None

    def publish(self, version: int) -> None:
        """Give the generators the policy's current weights; returns when they have them."""
        self.router.renew_weights(self.transport, version)


def load_generators(
    stage: StageConfig,
    pool: WorkerPool,
    context: WorkerContext,
    spec: ModelSpec,
    tokenizer_path: Path,
    *,
    most: int,
    policy: Model,
    memory: Colocation,
) -> Router:
    """Build and load the stage's generators, at most ``most``; replacements get the policy's weights in time."""
    assert stage.generator is not None
    generators = pool.generators[:most]
    pool.build(generators, stage.generator, kind="generate", context=context)
    calls = [g.call.remote("load", spec, str(tokenizer_path)) for g in generators]
    pool.get(calls, starting=True, what="loading the generator")

    @contextmanager
    def weights() -> Iterator[list[Any]]:
        with memory.both():
            yield policy.weight_references()

    replacements = GeneratorReplacements(
        pool=pool,
        choice=stage.generator,
        context=context,
        model=spec,
        tokenizer_path=tokenizer_path,
        most=most,
        weights=weights,
    )
    return Router(generators, pool, replacements=replacements, while_sampling=bool(stage.run.max_staleness))


def transport_of(stage: StageConfig, pool: WorkerPool, policy: Model, *, device: str) -> WeightTransport:
    """How weights go from the policy to the stage's generators."""
    assert stage.generator is not None
    name, while_sampling = weight_transport(stage), bool(stage.run.max_staleness)
    if name == "object_store":
        return ObjectStore(pool, policy, while_sampling)
    sender = stage.backend.config.weight_transports[name]
    receiver = stage.generator.config.weight_transports[name]
    if name == "ipc":
        return Ipc(pool, policy, sender=sender, receiver=receiver, device=device)
    return Collective(pool, policy, sender=sender, receiver=receiver, device=device, while_sampling=while_sampling)


def sampling_of(stage: StageConfig, tokenizer: Tokenizer) -> SamplingParams:
    """How rollouts are sampled."""
    assert stage.generator is not None
    config = stage.generator.config
    _check_stop_strings(stage, tokenizer)
    return SamplingParams(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=tuple(config.stop),
        stop_token_ids=end_token_ids(tokenizer),
    )


def _check_stop_strings(stage: StageConfig, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for one with a character that the tokenizer does not have: no completion can hold it."""
    askers = [("generator", stage.generator), *((f"evaluators, {e.name}", e) for e in stage.evaluators)]
    for section, choice in askers:
        for string in getattr(choice.config, "stop", ()) if choice is not None else ():
            try:
                tokenizer.encode_prompt(string)
            except DataError as error:
                raise ConfigError(
                    f"{section}: the stop string {string!r} can never occur: {error}\n    remove the stop string"
                ) from error
