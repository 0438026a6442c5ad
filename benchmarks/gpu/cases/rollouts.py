"""The generator ``hf``: its tokens and log-probs, and that the trainer agrees with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.generator import SamplingParams
from rl_torch.models import build_model

from gpu import oracle, product
from gpu.registry import Comparison, Machine, case

DTYPES = {"float32": (torch.float32, "fp32"), "bfloat16": (torch.bfloat16, "bf16")}
TEMPERATURE = 0.7


def _sampled(machine: Machine, dtype: str) -> Iterator[Comparison]:
    exact, precision = DTYPES[dtype]
    shape, spec = machine.shape, oracle.model_folder(machine)
    requests = product.prompts(shape.vocabulary, shape.longest)
    new = max(8, shape.longest // 4)
    # Room for a few rows only, so that rows end, move and make place for others.
    rows = int(requests.lengths.max() + new) * 4
    with product.generator(machine, spec, dtype=dtype, max_batch_tokens=rows) as generator:
        greedy = generator.generate(requests, product.greedy(new))
        stop = tuple(range(0, shape.vocabulary, 8))  # so that completions end at different lengths
        drawn = generator.generate(
            requests, SamplingParams(n=3, max_new_tokens=new, temperature=TEMPERATURE, stop_token_ids=stop)
        )
    reference = oracle.load(spec, rounded_to=exact)
    rounds = machine.rounding(exact)
    yield from _against("greedy", greedy, reference, rounds, temperature=1.0)
    behind = oracle.behind_the_best(reference, greedy) * torch.from_numpy(greedy.token_columns["loss_mask"])
    yield Comparison("greedy tokens behind the most likely one", float(behind.max()), 2 * rounds * _size(greedy))
    yield from _against("sampled", drawn, reference, rounds, temperature=TEMPERATURE)
    with product.backend(machine, precision=precision) as trainer:
        trainer.load(product.POLICY, spec, product.FROZEN)
        recomputed = trainer.forward("policy", drawn, ("logprobs",), TEMPERATURE)["logprobs"]
    off = np.abs(recomputed - drawn.token_columns["sampled_logprobs"]).max()
    yield Comparison("log-probs of the trainer", float(off), 2 * rounds * _size(drawn))


def _against(
    label: str, batch: SequenceBatch, reference: torch.nn.Module, rounds: float, *, temperature: float
) -> Iterator[Comparison]:
    with torch.no_grad():
        expected = oracle.outputs(reference, "lm", batch, ("logprobs",), temperature=temperature).logprobs
    assert expected is not None
    mask = batch.token_columns["loss_mask"]
    off = np.abs((batch.token_columns["sampled_logprobs"] - expected.numpy()) * mask).max()
    yield Comparison(f"{label} log-probs", float(off), rounds * _size(batch))


def _size(batch: SequenceBatch) -> float:
    """What errors of log-probs are relative to."""
    return max(1.0, float(np.abs(batch.token_columns["sampled_logprobs"]).max()))


for _dtype in DTYPES:

    def _generate(machine: Machine, dtype: str = _dtype) -> Iterator[Comparison]:
        """Greedy and sampled completions against the model itself and the trainer's log-probs."""
        yield from _sampled(machine, dtype)

    case("equality", seconds=30, name=f"generator_{_dtype}")(_generate)


@case("equality", seconds=20)
def random_streams(machine: Machine) -> Iterator[Comparison]:
    """A completion depends on its prompt and seed only: not on its neighbours, nor on the rows there is room for."""
    shape, spec = machine.shape, oracle.model_folder(machine)
    requests = product.prompts(shape.vocabulary, shape.longest)
    sampling = SamplingParams(n=2, max_new_tokens=8)
    with product.generator(machine, spec) as generator:
        together = generator.generate(requests, sampling)
        alone = [generator.generate(requests.select([i]), sampling) for i in range(len(requests))]
    apart = SequenceBatch.concat([SequenceBatch(b.tokens, b.offsets) for b in alone])
    differing = [i for i in range(len(together)) if not np.array_equal(_tokens(together, i), _tokens(apart, i))]
    # A number within rounding of the boundary between two tokens may fall on either side.
    yield Comparison("completions that differ", len(differing), max(1.0, 0.1 * len(together)) if machine.is_cuda else 0)


def _tokens(batch: SequenceBatch, index: int) -> np.ndarray:
    return batch.tokens[batch.sequence(index)]


@case("equality", seconds=20)
def random_initial_weights(machine: Machine) -> Iterator[Comparison]:
    """A model from scratch has the same weights on every device."""
    from rl_core.contracts.model import ModelSpec

    init = {"architecture": "qwen2", "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 128}
    spec = ModelSpec(init=init, vocab_size=128, max_length=64, seed=5)
    here, there = (build_model(spec, dtype=torch.float32, device=device) for device in ("cpu", machine.device))
    odd = [n for n, p in there.state_dict().items() if not torch.equal(p.cpu(), here.state_dict()[n])]
    yield Comparison("tensors that differ", len(odd), 0, note=", ".join(odd[:3]))
