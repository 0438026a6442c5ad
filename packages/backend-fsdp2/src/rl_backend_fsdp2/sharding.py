"""FSDP2 around a model: one shard group per decoder layer, gradients summed over ranks."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rl_core.errors import EnvironmentProblem
from rl_torch.policy import PolicyModel, ScalarModel
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from rl_backend_fsdp2.layers import decoder_layers
from rl_backend_fsdp2.mesh import Mesh

if TYPE_CHECKING:
    from rl_backend_fsdp2.config import Fsdp2Config, Precision, Recompute

Wrapped = PolicyModel | ScalarModel

COMPUTE_DTYPE: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def is_plain(mesh: Mesh, config: Fsdp2Config) -> bool:
    """Whether there is nothing for FSDP to do.

    A single rank that computes in float32 has nothing to shard or cast and stays a plain module: FSDP's hooks and
    DTensor updates cost 13 ms of 50 ms per step of a 0.4M-parameter model on CPU.
    """
    return mesh.size == 1 and config.precision == "fp32" and not config.cpu_offload


def shard_model(model: Wrapped, mesh: Mesh, config: Fsdp2Config, *, whole: set[nn.Parameter]) -> Wrapped:
    """Shard ``model`` in place over ``mesh`` and return it; parameters in ``whole`` stay on every rank.

    A model with storage is moved to the mesh's device first.

    Raises:
        EnvironmentProblem: layers share weights, which FSDP would shard with each of them.
    """
    if not any(p.is_meta for p in model.parameters()):
        model.to(mesh.device)
    if is_plain(mesh, config):
        return model
    _check_nothing_shared(model.model)
    dtype = COMPUTE_DTYPE[config.precision]
    # Float32 compute needs no policy; casting would cost a copy of every parameter.
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if config.cpu_offload else OffloadPolicy()
    shard = functools.partial(
        fully_shard,
        mesh=mesh.fsdp,
        mp_policy=MixedPrecisionPolicy() if dtype == torch.float32 else mixed,
        offload_policy=offload,
        ignored_params=whole,
    )
    for layer in decoder_layers(model.model):
        shard(layer)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by global counts already, so gradients add up over ranks; gloo has
            # no averaging or pre-multiplied reduction anyway.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def _check_nothing_shared(model: PreTrainedModel) -> None:
    owners: dict[nn.Parameter, int] = {}
    for index, layer in enumerate(decoder_layers(model)):
        for name, parameter in layer.named_parameters():
            first = owners.setdefault(parameter, index)
            if first != index:
                raise EnvironmentProblem(
                    f"{type(model).__name__} has one weight {name} for layers {first} and {index}, which FSDP cannot "
                    "shard\n    train it with one process, backend.precision: fp32 and without backend.cpu_offload"
                )


def recompute_activations(model: PreTrainedModel, how: Recompute) -> None:
    """Have the backward pass of a transformers model recompute what ``how`` says, layer by layer."""
    if how == "none":
        return
    options: dict[str, object] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_expensive)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            # transformers recomputes in training mode only. Not model.train(): some layers are random there.
            module.training = True


_ATEN = torch.ops.aten
_EXPENSIVE = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
}


def _keep_expensive(_context: object, operation: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
    """Matrix products and attention are kept; norms, activations and the like are cheap to repeat."""
    # Variable-length attention is registered only when it is first imported.
    expensive = operation in _EXPENSIVE or str(operation).startswith("torch_attn._varlen_attn.")
    return CheckpointPolicy.MUST_SAVE if expensive else CheckpointPolicy.PREFER_RECOMPUTE


def compile_layers(model: nn.Module) -> None:
    """torch.compile each decoder layer; they share one compiled graph, cached on disk for later runs.

    The cache is ``TORCHINDUCTOR_CACHE_DIR`` where the user set it, else below ``XDG_CACHE_HOME`` (``~/.cache``).
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if given is None or _is_pytorchs_own(Path(given)):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Machines may share a home, and PyTorch loads what was compiled for other vector instructions: it crashes.
        folder = cache / "rl" / "inductor" / torch.backends.cpu.get_cpu_capability()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def _is_pytorchs_own(folder: Path) -> bool:
    """Whether this is PyTorch's default, ``torchinductor_<user>`` in the temporary folder.

    Importing ``torch._dynamo``, as transformers does, sets the variable to it.
    """
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


def release(model: Wrapped) -> None:
    """Drop the gathered parameters that a forward pass without a backward pass leaves at the root.

    They would otherwise be used, stale, after the next optimizer step or restore.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def stored_tensors(model: Wrapped) -> Iterator[tuple[str, Tensor]]:
    """Stored parameters and persistent buffers, tied ones once."""
    seen: set[int] = set()
    for name, tensor in model.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()
