"""Megatron Core on a machine without CUDA.

The library asks for ``"cuda"`` devices by name in a few places. Inside :func:`cpu_devices` those requests
give CPU tensors, so that everything else runs unchanged on gloo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class _Stream:
    """Work on CPU is done when the call returns: there is nothing to wait for."""

    def wait_stream(self, _other: object) -> None:
        """Nothing to wait for."""

    def record_event(self) -> _Stream:
        """Something to wait for."""
        return self

    def synchronize(self) -> None:
        """Nothing to wait for."""


def _all_to_all_single(
    output: torch.Tensor,
    given: torch.Tensor,
    output_split_sizes: Any = None,
    input_split_sizes: Any = None,
    **more: Any,
) -> Any:
    """The sizes are tensors on CPU, which the library only turns into lists when they come from CUDA."""
    received, sent = (s.tolist() if isinstance(s, torch.Tensor) else s for s in (output_split_sizes, input_split_sizes))
    return _exchange(output, given, received, sent, **more)


_exchange = torch.distributed.all_to_all_single


class _CudaMeansCpu(TorchFunctionMode):
    """``device="cuda"`` creates on CPU, ``Tensor.cuda()`` does nothing, ``Tensor.type()`` says ``torch.cuda.…``.

    The last one is for DDP and optimizers that sort parameters by ``"torch.cuda.FloatTensor"`` and the like.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if func is torch.Tensor.cuda:
            return args[0]
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = _CPU
        return func(*args, **kwargs)


@contextmanager
def cpu_devices() -> Iterator[None]:
    """Let ``cuda`` mean CPU in this thread; may be nested.

    Enter it anew in every call, because modes are per thread. CUDA's random-number state, which recomputing
    activations saves and restores, is empty.
    """
    replaced = (
        (torch.cuda, "current_device", lambda: _CPU),
        (torch.cuda, "synchronize", lambda *_args, **_kwargs: None),
        (torch.cuda, "Stream", lambda *_args, **_kwargs: _Stream()),
        (torch.cuda, "current_stream", lambda *_args, **_kwargs: _Stream()),
        (torch.cuda, "stream", nullcontext),
        (torch.distributed, "all_to_all_single", _all_to_all_single),
        (megatron_random, "_get_cuda_rng_state", lambda *_args, **_kwargs: torch.empty(0, dtype=torch.uint8)),
        (megatron_random, "_set_cuda_rng_state", lambda *_args, **_kwargs: None),
    )
    saved = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, stand_in in replaced:
        setattr(owner, name, stand_in)
    try:
        with _CudaMeansCpu():
            yield
    finally:
        for (owner, name, _), original in zip(replaced, saved, strict=True):
            setattr(owner, name, original)
