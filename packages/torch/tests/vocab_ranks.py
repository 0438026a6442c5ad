"""What a rank of the vocabulary-parallel tests does; imported by its processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from rl_torch.logprobs import token_outputs
from rl_torch.vocab_parallel import VocabShard

OUTPUTS = ("logprobs", "entropy", "mean_logprobs", "logsumexp")

CASES = [(sizes, chunk) for sizes in ((19, 18), (32, 5), (37, 0)) for chunk in (None, 4)]
"""Rows of each rank, and tokens of a chunk."""


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [11, 8], an output embedding [37, 8] in float64, targets [11]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(37, 8, generator=generator, dtype=torch.float64)
    return hidden, weight, torch.randint(0, 37, (11,), generator=generator)


def objective(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """A sum in which every output of every token has a weight of its own."""
    return sum((i + 1) * (v * torch.arange(len(v))).sum() for i, v in enumerate(values.values()))


def compare(rank: int, world: int, port: int) -> list[tuple[tuple[int, int], int | None]]:
    """Compare values and gradients from a part of the vocabulary with those from all of it; the cases compared."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    hidden, weight, targets = problem()
    for sizes, chunk in CASES:
        start = sum(sizes[:rank])
        own = slice(start, start + sizes[rank])
        results = []
        for part, shard in ((weight, None), (weight[own], VocabShard(dist.group.WORLD, start, len(weight)))):
            h, w = hidden.clone().requires_grad_(), part.clone().requires_grad_()
            values = token_outputs(h, w, targets, outputs=OUTPUTS, temperature=0.7, chunk_tokens=chunk, shard=shard)
            objective(values).backward()
            results.append((values, h.grad, w.grad))
        (whole, h_whole, w_whole), (ours, h_ours, w_ours) = results
        for name in OUTPUTS:
            torch.testing.assert_close(ours[name], whole[name], atol=1e-12, rtol=0)
        torch.testing.assert_close(h_ours, h_whole, atol=1e-11, rtol=0)
        torch.testing.assert_close(w_ours, w_whole[own], atol=1e-11, rtol=0)
    dist.destroy_process_group()
    return CASES
