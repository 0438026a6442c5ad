"""Rotary position embedding (Su et al. 2021), the halves of a head paired."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """Angles of the positions [...]; what they turn is [..., heads, d].

    Attributes:
        cosines: [..., 1, d], the second half like the first.
        first, second: sines for the first and the second half of a head, [..., 1, d/2] each.
    """

    cosines: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, embeddings: tuple[Tensor, Tensor]) -> Rotation:
        """From cosines and sines [..., d], as transformers gives them to its layers."""
        cosines, sines = (part.unsqueeze(-2) for part in embeddings)
        return cls(cosines, *sines.chunk(2, dim=-1))

    def at(self, positions: Tensor) -> Rotation:
        """For some of the positions [N], int64."""
        return Rotation(*(part.index_select(0, positions) for part in (self.cosines, self.first, self.second)))

    def forward(self, states: Tensor) -> Tensor:
        """``states``, turned."""
        turned, half = states * self.cosines, self.first.shape[-1]
        turned[..., :half].addcmul_(states[..., half:], self.first, value=-1)
        turned[..., half:].addcmul_(states[..., :half], self.second)
        return turned

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient by what :meth:`forward` was given."""
        turned, half = gradient * self.cosines, self.first.shape[-1]
        turned[..., :half].addcmul_(gradient[..., half:], self.second)
        turned[..., half:].addcmul_(gradient[..., :half], self.first, value=-1)
        return turned
