"""Completions per second against ``transformers.generate``, on one CPU thread.

Run ``python benchmarks/throughput.py``. Both get the same prompts at the same number of rows at
once. "varying" means prompts of 4 to 32 tokens and completions of 4 to 32 tokens: a stop token is
drawn with a probability that gives such lengths, in the same way for both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator
from rl_torch.models import build_model

VOCAB = 128
INIT = {"architecture": "qwen2", "hidden_size": 128, "layers": 2, "heads": 4, "ffn": 352, "tie_embeddings": True}


def requests(lengths: np.ndarray) -> SequenceBatch:
    """Random prompts of the given lengths."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB, length) for length in lengths]
    return SequenceBatch.from_lists(prompts, sequence_columns={"seed": np.arange(len(prompts), dtype=np.int64)})


def seconds(run: Callable[[], int], repeats: int) -> tuple[float, int]:
    """Median seconds of ``run`` and the tokens it reported last."""
    run()
    times, tokens = [], 0
    for _ in range(repeats):
        start = time.perf_counter()
        tokens = run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), tokens


def ours(generator: HfGenerator, batch: SequenceBatch, sampling: SamplingParams) -> int:
    """Sampled tokens of one call."""
    return int(generator.generate(batch, sampling).token_columns["loss_mask"].sum())


def theirs(model: torch.nn.Module, batch: SequenceBatch, sampling: SamplingParams, rows: int) -> int:
    """Sampled tokens of ``model.generate``, ``rows`` completions at a time, prompts sorted by length."""
    stop, total = sampling.stop_token_ids, 0
    prompts = [batch.tokens[batch.sequence(i)] for i in np.argsort(batch.lengths, kind="stable")]
    prompts = [p for p in prompts for _ in range(sampling.n)]
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        width = max(map(len, part))
        ids = np.zeros((len(part), width), np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        out = model.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            pad_token_id=0,
            eos_token_id=list(stop) or None,
        )[:, width:]
        total += int((out != 0).sum()) if stop else out.numel()
    return total


def main() -> None:
    """Print one line per case."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--repeats", type=int, default=7)
    repeats = arguments.parse_args().repeats
    spec = ModelSpec(init=INIT, vocab_size=VOCAB, max_length=256)
    model = build_model(spec, dtype=torch.float32)
    rng = np.random.default_rng(1)
    # About one in ten random tokens ends a completion.
    stop = tuple(range(1, 13))
    equal, varying = np.full(32, 6), rng.integers(4, 33, 64)
    cases = (
        ("32 prompts x 8, 4 tokens each", equal, SamplingParams(n=8, max_new_tokens=4), 256),
        ("512 prompts greedy, 4 tokens each", np.full(512, 6), SamplingParams(max_new_tokens=4, temperature=0), 512),
        ("64 prompts, 64 tokens each", np.full(64, 16), SamplingParams(max_new_tokens=64), 64),
        ("varying, all rows at once", varying, SamplingParams(n=4, max_new_tokens=32, stop_token_ids=stop), 256),
        ("varying, 64 rows at once", varying, SamplingParams(n=4, max_new_tokens=32, stop_token_ids=stop), 64),
    )
    for name, lengths, sampling, rows in cases:
        budget = rows * int(lengths.max() + sampling.max_new_tokens)
        generator = HfGenerator(HfGeneratorConfig(name="hf", max_batch_tokens=budget))
        generator.setup(WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=1))
        generator.load(spec, None)
        batch = requests(lengths)
        a, a_tokens = seconds(lambda g=generator, b=batch, s=sampling: ours(g, b, s), repeats)
        with torch.inference_mode():
            b, b_tokens = seconds(lambda b=batch, s=sampling, r=rows: theirs(model, b, s, r), repeats)
        speedup = (a_tokens / a) / (b_tokens / b)
        sys.stdout.write(
            f"{name}: {a * 1e3:.1f} ms, {a_tokens / a:,.0f} tokens/s; "
            f"transformers.generate {b_tokens / b:,.0f} tokens/s ({speedup:.2f} x)\n"
        )


if __name__ == "__main__":
    main()
