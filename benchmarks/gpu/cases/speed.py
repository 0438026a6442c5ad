"""How fast training steps and sampling are, with models of the shapes of Qwen2.5-0.5B and Qwen2.5-1.5B.

Weights are random and kept in float32, computed with in bfloat16, as a run with ``precision: bf16`` has them. Sequences
have lengths as chats do, up to 4,096 tokens, packed into micro-batches of 16,384.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelInfo, ModelSpec, OptimizerSpec, Role
from rl_torch.logprobs import token_outputs

from gpu import batches, product
from gpu.flops import TransformerFlops, peak_flops
from gpu.registry import Machine, Skip, Speed, case
from gpu.timing import SIZES, Size, device_name, time_steps

GOALS = {("sft", "1.5b"): 0.5, ("grpo", "1.5b"): 0.4}
"""Model FLOPs utilisation on an H200."""

CHUNK_TOKENS = 2048
"""Of the vocabulary's logits, 1.2 GB in float32: on a GPU the default of 64 MB reads the output embedding too often."""

REFERENCE = Role("reference", trainable=False)


def train(machine: Machine, name: str, *, only_sft: bool = False, **more: Any) -> Iterator[Speed]:
    """Steps of the three algorithms with the model ``name``; ``more`` are settings of the backend."""
    size = SIZES[name if machine.is_cuda else "tiny"]
    spec = ModelSpec(init=size.init, vocab_size=size.vocab_size, max_length=size.sequence_length)
    settings: dict[str, Any] = {
        "precision": "bf16",
        "max_tokens_per_microbatch": size.max_tokens_per_microbatch,
        "logprob_chunk_tokens": CHUNK_TOKENS,
        **more,
    }
    with product.backend(machine, **settings) as trainer:
        info = trainer.load(product.POLICY, spec, OptimizerSpec(learning_rate=1e-6))
        timed = partial(_timed, machine, size, info, name if machine.is_cuda else "tiny")
        texts = mixed_lengths(size)
        yield timed("sft", texts, lambda: product.train(trainer, texts, batches.NLL), passes=1.0)
        if only_sft:
            return
        rollouts = _rollouts(trainer, texts)
        yield timed("grpo", rollouts, lambda: _grpo_step(trainer, rollouts), passes=4 / 3)
        trainer.load(REFERENCE, spec, None)
        pairs = _pairs(texts)
        yield timed("dpo", pairs, lambda: _dpo_step(trainer, pairs), passes=4 / 3)


def _timed(
    machine: Machine,
    size: Size,
    info: ModelInfo,
    model: str,
    step: str,
    batch: SequenceBatch,
    run: Callable[[], Any],
    *,
    passes: float,
) -> Speed:
    """Time ``run``, which costs ``passes`` times the forward and backward pass of ``batch``."""
    timing = time_steps(run, device=machine.device, warmup=1, steps=3)
    count = TransformerFlops(
        parameters=info.parameters,
        head_parameters=info.vocab_size * size.init["hidden_size"],
        layers=size.init["layers"],
        attention_width=size.init["hidden_size"],
    )
    within = np.arange(len(batch.tokens)) - batch.offsets[batch.sequence_ids]
    scored = int(((batch.token_columns["loss_mask"] != 0) & (within > 0)).sum())
    seconds, peak = statistics.median(timing.seconds), peak_flops(device_name(machine.device))
    flops = passes * count.train(batch.lengths.tolist(), scored)
    return Speed(
        what=step,
        model=model,
        tokens_per_second=len(batch.tokens) / seconds,
        seconds=seconds,
        mfu=flops / seconds / peak if peak else None,
        goal=GOALS.get((step, model)),
        peak_bytes=timing.peak_bytes,
        note=f"{len(batch.tokens):,} tokens in {len(batch)} sequences",
    )


def mixed_lengths(size: Size) -> SequenceBatch:
    """As many tokens as ``size`` says, in sequences of log-normal lengths up to its own; all are trained on."""
    rng = np.random.default_rng(0)
    total, longest = size.sequences * size.sequence_length, size.sequence_length
    lengths: list[int] = []
    while sum(lengths) < total:
        length = int(np.clip(rng.lognormal(np.log(longest / 4), 0.8), longest // 32, longest))
        lengths.append(min(length, max(8, total - sum(lengths))))
    lengths += [8] * (len(lengths) % 2)  # pairs
    return SequenceBatch.from_lists(
        [rng.integers(0, size.vocab_size, n) for n in lengths],
        token_columns={"loss_mask": [np.ones(n, np.float32) for n in lengths]},
    )


def _completions(texts: SequenceBatch) -> SequenceBatch:
    """``texts`` as completions after prompts of an eighth."""
    within = np.arange(len(texts.tokens)) - texts.offsets[texts.sequence_ids]
    mask = (within >= texts.lengths[texts.sequence_ids] // 8).astype(np.float32)
    return texts.with_columns(token={"loss_mask": mask})


def _rollouts(trainer: Any, texts: SequenceBatch) -> SequenceBatch:
    batch = _completions(texts)
    advantages = np.resize([1.0, -1.0], len(batch))[batch.sequence_ids].astype(np.float32)
    sampled = product.logprobs(trainer, batch)
    return batch.with_columns(token={"advantages": advantages, "sampled_logprobs": sampled})


def _pairs(texts: SequenceBatch) -> SequenceBatch:
    count = len(texts)
    return _completions(texts).with_columns(
        sequence={"unit": np.arange(count) // 2, "chosen": np.arange(count) % 2 == 0}
    )


def _grpo_step(trainer: Any, rollouts: SequenceBatch) -> None:
    """As :class:`rl_algo_grpo.grpo.Grpo` with two minibatches: old log-probs, then an update on each half."""
    loss: LossSpec = batches.LOSSES["grpo without kl"]
    batch = rollouts.with_columns(token={"old_logprobs": product.logprobs(trainer, rollouts)})
    for half in np.array_split(np.arange(len(batch)), 2):
        product.train(trainer, batch.select(half), loss)


def _dpo_step(trainer: Any, pairs: SequenceBatch) -> None:
    """As :class:`rl_algo_dpo.dpo.Dpo`, with the reference's log-probs computed in every step."""
    per_token = product.logprobs(trainer, pairs, role="reference").astype(np.float64) * pairs.token_columns["loss_mask"]
    summed = np.bincount(pairs.sequence_ids, weights=per_token, minlength=len(pairs)).astype(np.float32)
    batch = pairs.with_columns(sequence={"ref_logprob": summed})
    product.train(trainer, batch, batches.LOSSES["dpo sigmoid"])


def _generate(machine: Machine, name: str) -> Iterator[Speed]:
    size = SIZES[name if machine.is_cuda else "tiny"]
    rows, prompt, new = (256, 256, 128) if machine.is_cuda else (4, 8, 8)
    spec = ModelSpec(init=size.init, vocab_size=size.vocab_size, max_length=size.sequence_length)
    rng = np.random.default_rng(0)
    requests = SequenceBatch.from_lists(
        [rng.integers(0, size.vocab_size, prompt) for _ in range(rows)],
        sequence_columns={"seed": np.arange(rows, dtype=np.int64)},
    )
    settings = {"dtype": "bfloat16", "max_batch_tokens": rows * (prompt + new)}
    with product.generator(machine, spec, **settings) as generator:
        sampling = SamplingParams(max_new_tokens=new)
        timing = time_steps(lambda: generator.generate(requests, sampling), device=machine.device, warmup=1, steps=1)
    seconds = statistics.median(timing.seconds)
    yield Speed(
        what="generate",
        model=name if machine.is_cuda else "tiny",
        tokens_per_second=rows * new / seconds,
        seconds=seconds,
        peak_bytes=timing.peak_bytes,
        note=f"{new} new tokens after {prompt}, {rows} rows at once",
    )


for _name in ("0.5b", "1.5b"):

    def _steps(machine: Machine, name: str = _name) -> Iterator[Speed]:
        """Training steps of SFT, GRPO and DPO."""
        if not machine.is_cuda and name != "0.5b":
            raise Skip("one tiny model stands for both on the CPU")
        yield from train(machine, name)

    def _sampling(machine: Machine, name: str = _name) -> Iterator[Speed]:
        """Tokens that the generator hf samples."""
        if not machine.is_cuda and name != "0.5b":
            raise Skip("one tiny model stands for both on the CPU")
        yield from _generate(machine, name)

    case("speed", seconds=150 if _name == "1.5b" else 80, name=f"train_{_name}")(_steps)
    case("speed", seconds=60, name=f"generate_{_name}")(_sampling)


@case("speed", seconds=30)
def output_projection(machine: Machine) -> Iterator[Speed]:
    """Log-probs and their gradients from hidden states of the 1.5B model, by the size of the logits' chunks."""
    size = SIZES["1.5b" if machine.is_cuda else "tiny"]
    tokens, width = size.max_tokens_per_microbatch, size.init["hidden_size"]
    hidden = torch.randn(tokens, width, device=machine.device).bfloat16().requires_grad_()
    weight = torch.randn(size.vocab_size, width, device=machine.device).bfloat16().requires_grad_()
    targets = torch.randint(size.vocab_size, (tokens,), device=machine.device)
    peak = peak_flops(device_name(machine.device))
    for chunk in (None, 512, CHUNK_TOKENS, 4 * CHUNK_TOKENS) if machine.is_cuda else (None, 64):

        def step(chunk: int | None = chunk) -> None:
            token_outputs(hidden, weight, targets, chunk_tokens=chunk)["logprobs"].sum().backward()

        timing = time_steps(step, device=machine.device, warmup=1, steps=3)
        seconds = statistics.median(timing.seconds)
        yield Speed(
            what="output projection",
            model="1.5b" if machine.is_cuda else "tiny",
            tokens_per_second=tokens / seconds,
            seconds=seconds,
            mfu=6.0 * tokens * weight.numel() / seconds / peak if peak else None,
            peak_bytes=timing.peak_bytes,
            note=f"chunks of {chunk or 'the default'} tokens",
        )
