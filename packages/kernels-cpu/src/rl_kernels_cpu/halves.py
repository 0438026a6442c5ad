"""The two halves of a decoder layer, attention and feed-forward network, each with its own backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_kernels_cpu import gate, norm
from rl_kernels_cpu.attention import Heads, attend
from rl_kernels_cpu.distinct import Distinct
from rl_kernels_cpu.products import added, by_input, by_weight, product
from rl_kernels_cpu.ragged import RaggedRows
from rl_kernels_cpu.rotary import Rotation
from rl_kernels_cpu.slots import Slots


@dataclass(frozen=True)
class Frame:
    """Inputs of a layer: its attention and the micro-batch.

    Attributes:
        epsilon: of the norms.
        wanted: int64 [M], in the last layer: the positions whose outputs are used. Keys and values are computed for all
            U positions, everything else for these. None: all.
        distinct: in the first layer, where tokens repeat: projections are computed once for each of D distinct tokens.
            None: at each of D = U positions.
    """

    heads: Heads
    rotation: Rotation
    rows: RaggedRows
    epsilon: float
    wanted: Tensor | None = None
    distinct: Distinct | None = None

    def slots(self) -> tuple[Slots, Slots, Slots]:
        """Of queries, keys and values."""
        keys = Slots.of(self.rows, self.heads.keys)
        return Slots.of(self.rows, self.heads.queries), keys, keys

    def rotations(self) -> tuple[Rotation, Rotation]:
        """Of queries and keys."""
        return self.rotation if self.wanted is None else self.rotation.at(self.wanted), self.rotation

    def sources(self, x: Tensor) -> Tensor:
        """[U, …] → [D, …]: what is projected."""
        return x if self.distinct is None else x.index_select(0, self.distinct.first)

    def sources_backward(self, by_sources: Tensor, direct: Tensor) -> Tensor:
        """[U, …]: the gradient by ``x`` from that by its sources and the one that it gets otherwise, summed."""
        return by_sources if self.distinct is None else direct.index_add(0, self.distinct.first, by_sources)

    def queried(self, sources: Tensor) -> Tensor:
        """[D, …] → what queries are projected from: all sources, or of wanted positions alone."""
        return self.pick(sources) if self.distinct is None else sources

    def queried_backward(self, gradient: Tensor, count: int) -> Tensor:
        """[D, …]."""
        return self.spread(gradient, count) if self.distinct is None else gradient

    def expand(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Queries, keys and values of sources → queries of the M wanted positions, keys and values of all U."""
        if self.distinct is None:
            return list(states)
        return [part.index_select(0, self.distinct.at(c)) for part, c in zip(states, self._owners(), strict=True)]

    def expand_backward(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients by the states of sources."""
        if self.distinct is None:
            return list(gradients)
        return [self.distinct.total(part, c) for part, c in zip(gradients, self._owners(), strict=True)]

    def _owners(self) -> tuple[Tensor | None, None, None]:
        return self.wanted, None, None

    def pick(self, states: Tensor) -> Tensor:
        """[U, …] → [M, …]."""
        return states if self.wanted is None else states.index_select(0, self.wanted)

    def spread(self, states: Tensor, count: int) -> Tensor:
        """[M, …] → [U, …], zero elsewhere."""
        if self.wanted is None:
            return states
        return states.new_zeros(count, *states.shape[1:]).index_copy_(0, self.wanted, states)


class Attention(torch.autograd.Function):
    """``x + output(attention(norm(x)))`` at the wanted positions, x [U, H] for U positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frame: Frame, weight: Tensor, *parameters: Tensor | None) -> Tensor:
        """[M, H].

        Args:
            weight: of the norm.
            parameters: weights and biases of the projections to queries, keys, values and back; weights of the norms
                of queries and keys. None for what the architecture lacks.
        """
        linear, head_norms = _pairs(parameters[:8]), [weight for weight in parameters[8:] if weight is not None]
        sources = frame.sources(x)
        normalized, factor = norm.forward(sources, weight, frame.epsilon)
        inputs = (frame.queried(normalized), normalized, normalized)
        projected = [
            product(i, *pair).unflatten(1, (-1, frame.heads.width)) for i, pair in zip(inputs, linear[:3], strict=True)
        ]
        states, kept = list(projected), []
        if head_norms:
            both = [norm.forward(part, w, frame.epsilon) for part, w in zip(states[:2], head_norms, strict=True)]
            states[:2] = [part for part, _ in both]
            kept = [*projected[:2], *(factors for _, factors in both), *head_norms]
        states = frame.expand(states)
        states[:2] = [turn.forward(part) for turn, part in zip(frame.rotations(), states[:2], strict=True)]
        states[0] = frame.spread(states[0], len(x))
        slots = frame.slots()
        query, key, value = (slot.gather(part) for slot, part in zip(slots, states, strict=True))
        seen, ctx.attention_backward = attend(frame.rows.shapes, query, key, value, frame.heads)
        merged = frame.pick(slots[0].scatter(seen).flatten(1))
        ctx.save_for_backward(sources, normalized, factor, merged, weight, *(w for w, _ in linear), *kept)
        ctx.frame, ctx.positions, ctx.biased = frame, len(x), [bias is not None for _, bias in linear]
        return added(frame.pick(x), merged, *linear[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """By what :meth:`forward` was given."""
        sources, normalized, factor, merged, weight, query, key, value, output, *kept = ctx.saved_tensors
        frame, slots = ctx.frame, ctx.frame.slots()
        by_seen = frame.spread(by_input(gradient, output), ctx.positions).unflatten(1, (-1, frame.heads.width))
        by_shown = ctx.attention_backward(slots[0].scatter_backward(by_seen))
        del ctx.attention_backward  # with what it kept
        states = [slot.gather_backward(part) for slot, part in zip(slots, by_shown, strict=True)]
        states[0] = frame.pick(states[0])
        states[:2] = [turn.backward(part) for turn, part in zip(frame.rotations(), states[:2], strict=True)]
        states = frame.expand_backward(states)
        by_head_norms: list[Tensor | None] = [None, None]
        if kept:
            both = [norm.backward(g, *of) for g, *of in zip(states[:2], kept[:2], kept[2:4], kept[4:], strict=True)]
            states[:2], by_head_norms = [part for part, _ in both], [by_norm for _, by_norm in both]
        flat = [part.flatten(1) for part in states]
        by_normalized = frame.queried_backward(by_input(flat[0], query), len(sources))
        for part, projection in zip(flat[1:], (key, value), strict=True):
            by_normalized = by_input(part, projection, plus=by_normalized)
        direct = frame.spread(gradient, ctx.positions)
        plus = direct if frame.distinct is None else None
        by_sources, by_norm = norm.backward(by_normalized, sources, factor, weight, plus=plus)
        by_x = frame.sources_backward(by_sources, direct)
        inputs = (frame.queried(normalized), normalized, normalized, merged)
        by_linear = _by_parameters((*flat, gradient), inputs, ctx.biased)
        return by_x, None, by_norm, *by_linear, *by_head_norms


class FeedForward(torch.autograd.Function):
    """``x + down(silu(gate(y)) · up(y))`` with y = norm(x), x [M, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float, weight: Tensor, *parameters: Tensor | None) -> Tensor:
        """[1, M, H]: as layers return it, and no view, which FSDP could not follow in-place changes of.

        Args:
            weight: of the norm.
            parameters: weights and biases (or None) of gate, up and down.
        """
        linear = _pairs(parameters)
        normalized, factor = norm.forward(x, weight, epsilon)
        opening, up = (product(normalized, *pair) for pair in linear[:2])
        inner = gate.forward(opening, up)
        ctx.save_for_backward(x, normalized, factor, opening, up, inner, weight, *(w for w, _ in linear))
        ctx.biased = [bias is not None for _, bias in linear]
        result = x.new_empty(1, *x.shape)
        added(x, inner, *linear[2], out=result[0])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """By what :meth:`forward` was given."""
        x, normalized, factor, opening, up, inner, weight, *weights = ctx.saved_tensors
        gradient = gradient[0]
        states = gate.backward(by_input(gradient, weights[2]), opening, up)
        by_normalized = by_input(states[1], weights[1], plus=by_input(states[0], weights[0]))
        by_x, by_norm = norm.backward(by_normalized, x, factor, weight, plus=gradient)
        by_linear = _by_parameters((*states, gradient), (normalized, normalized, inner), ctx.biased)
        return by_x, None, by_norm, *by_linear


def _pairs(parameters: Sequence[Tensor | None]) -> list[tuple[Any, Tensor | None]]:
    """Weight and bias of each projection."""
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def _by_parameters(
    gradients: Sequence[Tensor], inputs: Sequence[Tensor], biased: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients by weight and bias of each projection."""
    found: list[Tensor | None] = []
    for gradient, x, has_bias in zip(gradients, inputs, biased, strict=True):
        found += [by_weight(gradient, x), gradient.sum(0) if has_bias else None]
    return found
