"""What a kernel is: code that computes a model's layers faster, on the devices and for the models that it knows.

An entry point of the group ``rl_torch.kernels`` names an object that has these methods. It is loaded by ``rl check``
and ``rl doctor`` too, so it lies in a module that imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from rl_torch.microbatch import Layout
    from rl_torch.policy import Narrow

KernelChoice = Literal["auto", "none"] | tuple[str, ...]
"""``backend.kernels``: all that fit, none, or those of these names."""

Purpose = Literal["training", "scoring", "decoding"]


@dataclass(frozen=True)
class Use:
    """What a model is loaded for.

    Attributes:
        purpose: ``training``; ``scoring``: forward passes alone; ``decoding``: generating with a cache.
        device: ``"cpu"`` or ``"cuda"``.
        layout_fixed_by: the setting that says how micro-batches are laid out; empty where a kernel may choose.
        layers_fixed_by: the setting that needs the layers as they are: what happens inside of them (adapters, tensor
            parallelism, recomputed activations); empty where a kernel may replace them.
    """

    purpose: Purpose
    device: str
    layout_fixed_by: str = ""
    layers_fixed_by: str = ""


class CacheLayer(Protocol):
    """Keys and values of one layer, see :class:`KeyValueCache`."""

    def update(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Store new ones, [R, heads, L, d]; returns all that attention reads."""
        ...


class KeyValueCache(Protocol):
    """A generator's cache, which is told what comes before each forward pass."""

    @property
    def slot_layers(self) -> Sequence[CacheLayer]:
        """Of all layers of the model."""
        ...


class Masks(Protocol):
    """Attention masks of decoding: additive, one for all layers, one for each type of layer, or None for causal."""

    def prefill(self, length: int, like: Tensor) -> Tensor | dict[str, Tensor | None] | None:
        """For prompts in ``length`` columns, [1, 1, L, L]; with the dtype and device of ``like``."""
        ...

    def decode(
        self, positions: Tensor, length: int, like: Tensor, *, equal: bool
    ) -> Tensor | dict[str, Tensor | None] | None:
        """For one token a row at ``positions`` (int64 [R]) that reads ``length`` columns, [R, 1, 1, length]."""
        ...


class Decoding(Protocol):
    """Calls a model with a cache that has been told what comes."""

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Read prompts of ``lengths`` int64 [P] tokens, padded on the right to int64 [P, L].

        Returns:
            The logits behind the last token of each prompt, [P, vocabulary].
        """
        ...

    def decode(self, tokens: Tensor, positions: Tensor, *, longest: int, equal: bool) -> Tensor:
        """Read one token per row.

        Args:
            tokens: int64 [R].
            positions: int64 [R], their columns.
            longest: ``max(positions)``.
            equal: whether all positions are the same.

        Returns:
            The logits behind each token, [R, vocabulary].
        """
        ...

    def refresh(self) -> None:
        """The model's weights were replaced in place."""
        ...


@dataclass(frozen=True)
class Applied:
    """A kernel in use on a model.

    Attributes:
        parts: what of it is used, for the log.
        remove: puts the model back as it was.
        layout: of its micro-batches; None: as the backend lays them out.
        narrow: has it compute some positions only; None: it computes all.
        decoding: calls the model with a generator's cache and masks; None: as transformers does.
    """

    parts: tuple[str, ...]
    remove: Callable[[], None]
    layout: Layout | None = None
    narrow: Narrow | None = None
    decoding: Callable[[KeyValueCache, Masks], Decoding] | None = None


class Kernel(Protocol):
    """A package's kernel."""

    @property
    def name(self) -> str:
        """As configs name it."""
        ...

    def here(self) -> str:
        """What it does on this machine, in a sentence for ``rl doctor``; imports nothing heavy."""
        ...

    def expects(self, use: Use) -> str | None:
        """Why it cannot be used so, as far as that is known without the model; imports nothing heavy."""
        ...

    def prepare_process(self, device: str) -> None:
        """Settings of the process, before it computes anything on ``"cpu"`` or ``"cuda"``."""
        ...

    def fits(self, model: PreTrainedModel, use: Use) -> str | None:
        """Why it cannot be used on ``model``, which may have no storage; None where it can."""
        ...

    def apply(self, model: PreTrainedModel, use: Use) -> Applied:
        """Have ``model``, which it fits, computed by this kernel. What it computes stays the same up to rounding."""
        ...
