"""How many floating-point operations a training step needs, and how many a GPU could do: the two sides of MFU.

Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B) is the throughput that was seen, divided by the one
at which the device would do nothing but the model's own matrix products. Recomputed activations do not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

PEAK_FLOPS: tuple[tuple[frozenset[str], float], ...] = tuple(
    (frozenset(words.split()), teraflops * 1e12)
    for words, teraflops in (
        ("GB200", 2500),
        ("B200", 2250),
        ("GH200", 989),
        ("H200 NVL", 835),
        ("H200", 989),
        ("H100 PCIe", 756),
        ("H100 NVL", 835),
        ("H100", 989),
        ("A100", 312),
        ("L40S", 362),
        ("L40", 181),
        ("L4", 121),
    )
)
"""Words in a GPU's name → operations a second in dense bfloat16 or float16 products, from the vendor's data sheets.

The first row whose words are all in the name counts. Data sheets often print twice the number, for sparse matrices.
"""


def peak_flops(device_name: str) -> float | None:
    """Operations a second of a GPU; None for one that is not in the table, and for a slice of one (MIG)."""
    words = set(re.split(r"[\s-]+", device_name))
    if "MIG" in words:
        return None
    return next((peak for needed, peak in PEAK_FLOPS if needed <= words), None)


@dataclass(frozen=True)
class TransformerFlops:
    """Operations of a decoder-only transformer whose output projection is its token embedding.

    A token costs 6·N in training, for N parameters, and 12·L·W·T for attention, for L layers of W = heads × head size,
    in a sequence of T tokens. As in the paper attention counts in full, though a causal model needs half of it. Other
    than there, the output projection's share of N counts only for tokens that get a log-prob: it is not computed for
    prompts.

    Attributes:
        parameters: N, tied embeddings once.
        head_parameters: of the output projection, vocabulary × hidden size; a part of N.
        layers: L.
        attention_width: W.
    """

    parameters: int
    head_parameters: int
    layers: int
    attention_width: int

    def train(self, lengths: Sequence[int], scored_tokens: int) -> float:
        """Forward and backward pass over sequences of these lengths in tokens."""
        return self.matrices(sum(lengths), scored_tokens) + self.attention(lengths)

    def forward(self, lengths: Sequence[int], scored_tokens: int) -> float:
        """Forward pass alone: a third of :meth:`train`."""
        return self.train(lengths, scored_tokens) / 3

    def matrices(self, tokens: int, scored_tokens: int) -> float:
        """Products with parameters, in training."""
        body = self.parameters - self.head_parameters
        return 6.0 * (body * tokens + self.head_parameters * scored_tokens)

    def attention(self, lengths: Sequence[int]) -> float:
        """Queries with keys, and weights with values, in training."""
        return 12.0 * self.layers * self.attention_width * sum(length**2 for length in lengths)
