"""A stage's generators: loaded, behind a router, with a way for new weights to reach them and how they sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rl_core.config.generators import weight_transport
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.tokenizer import Tokenizer, end_token_ids
from rl_core.errors import ConfigError, DataError

from rl_rollout.replacements import GeneratorReplacements
from rl_rollout.router import Router
from rl_rollout.transports.collective import Collective
from rl_rollout.transports.ipc import Ipc
from rl_rollout.transports.object_store import ObjectStore, WeightTransport

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig
    from rl_core.contracts.rollout import RolloutWorkers


def load_generators(stage: StageConfig, workers: RolloutWorkers) -> Router:
    """Build and load the stage's generators; replacements get the policy's weights in time."""
    assert stage.generator is not None
    pool, context = workers.pool, workers.context
    generators = pool.generators[: workers.most]
    pool.build(generators, stage.generator, kind="generate", context=context)
    calls = [g.call.remote("load", workers.model, str(workers.tokenizer_path)) for g in generators]
    pool.get(calls, starting=True, what="loading the generator")

    @contextmanager
    def weights() -> Iterator[list[Any]]:
        with workers.memory.both():
            yield workers.policy.weight_references()

    replacements = GeneratorReplacements(
        pool=pool,
        choice=stage.generator,
        context=context,
        model=workers.model,
        tokenizer_path=workers.tokenizer_path,
        most=workers.most,
        weights=weights,
    )
    return Router(generators, pool, replacements=replacements, while_sampling=bool(stage.run.max_staleness))


def transport_of(stage: StageConfig, workers: RolloutWorkers) -> WeightTransport:
    """How weights go from the policy to the stage's generators."""
    assert stage.generator is not None
    pool, policy, device = workers.pool, workers.policy, workers.context.device
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
