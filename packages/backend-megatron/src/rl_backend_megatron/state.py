"""A role's state in and out of checkpoints.

Megatron says where its parts lie in the whole tensors; the files (:mod:`rl_torch.shards`) are not those of its
dist_checkpointing, which holds pickles. With an adapter only the adapter is stored: the weights under it are those of
the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensorFactory,
    apply_factories,
    is_main_replica,
)
from rl_torch.shards import Shard

from rl_backend_megatron.lora import Adapters
from rl_backend_megatron.model import StageModel
from rl_backend_megatron.optimizer import Trainer
from rl_backend_megatron.optimizer_state import load_optimizer, sharded_optimizer
from rl_backend_megatron.runtime import Runtime


def shards_of(stage: StageModel, trainer: Trainer | None, lora: Adapters | None, runtime: Runtime) -> list[Shard]:
    """This rank's parts of parameters, AdamW moments and float32 copies of bf16 weights; a collective."""
    return [_shard(tensor) for tensor in _tensors(_built(_sharded_state(stage, trainer, lora, runtime)))]


def load_state(
    stage: StageModel,
    trainer: Trainer | None,
    lora: Adapters | None,
    runtime: Runtime,
    *,
    read: Callable[[Sequence[Shard]], None],
    steps: int,
) -> None:
    """Undo :func:`shards_of`, for ``steps`` optimizer steps; ``read`` fills shards."""
    wanted = _sharded_state(stage, trainer, lora, runtime)
    built = _built(wanted)
    read([_shard(tensor) for tensor in _tensors(built)])
    state = _merged(wanted, built)
    stage.load_state_dict(state["model"], strict=False)
    if trainer is not None:
        load_optimizer(trainer, state["optimizer"], steps=steps)


def _built(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` with factories replaced by the tensors they make, which share memory with the originals."""
    result = _outer(state)
    apply_factories(result)
    return result


def _outer(state: dict[str, Any]) -> dict[str, Any]:
    return {name: _outer(value) if isinstance(value, dict) else value for name, value in state.items()}


def _tensors(state: Any) -> Iterator[ShardedTensor]:
    if isinstance(state, ShardedTensor):
        yield state
    elif isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _merged(wanted: Any, built: Any) -> Any:
    """The data of ``built``, with what each factory of ``wanted`` split put together again."""
    if isinstance(wanted, dict):
        return {name: _merged(value, built[name]) for name, value in wanted.items()}
    if isinstance(wanted, ShardedTensorFactory):
        return wanted.merge_fn(_data(built))
    return built.data


def _data(built: Any) -> Any:
    if isinstance(built, dict):
        return {name: _data(value) for name, value in built.items()}
    return [_data(value) for value in built] if isinstance(built, list) else built.data


def _shard(tensor: ShardedTensor) -> Shard:
    return Shard(
        name=tensor.key,
        data=tensor.data,
        shape=tuple(tensor.global_shape),
        offset=tuple(tensor.global_offset),
        owned=is_main_replica(tensor.replica_id),
        flexible=tensor.allow_shape_mismatch,
    )


def _sharded_state(
    stage: StageModel, trainer: Trainer | None, lora: Adapters | None, runtime: Runtime
) -> dict[str, Any]:
    metadata = {"dp_cp_group": runtime.groups.dp_cp, "singleton_local_shards": False}
    model = stage.sharded_state_dict(metadata=metadata)
    # Transformer Engine's layers add objects of their own, which matter for fp8 only and would have to be pickled.
    model = {name: part for name, part in model.items() if isinstance(part, ShardedTensor | ShardedTensorFactory)}
    if lora is not None:
        trained = {name for name, p in stage.named_parameters() if p.requires_grad}
        model = {name: tensor for name, tensor in model.items() if name in trained}
    state: dict[str, Any] = {"model": model}
    if trainer is not None:
        state["optimizer"] = sharded_optimizer(trainer, model, runtime)
    return state
