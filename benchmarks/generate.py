"""Completions a second of the generator ``hf`` against ``transformers.generate``, on the CPU.

Both sample the same prompts from the same model with random weights, with the same number of rows at a time and equal
threads, in turns (A B A B …). ``equal`` lets every completion run to its last token; in ``geometric`` some tokens end a
completion, so that lengths spread like those of real rollouts (the table gives the 10th and 90th percentile); in
``1 to 8`` a model that counts down (see ``compare/models.py``) spreads them evenly.

    python benchmarks/generate.py
    python benchmarks/generate.py --hidden 512 --layers 8 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compare.models import build
from compare.workloads import EOS, SPECIAL_TOKENS
from rich.console import Console
from rich.table import Table
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator
from rl_torch.models import build_model

PROMPT_TOKENS = 32
VOCABULARY = 512
MEAN_LENGTH = 40
"""Tokens after which a completion of ``geometric`` ends on average, were there no longest one."""
COUNTED = (5, 40)
"""Fewest and most tokens of a completion of ``1 to 8``."""


@dataclass(frozen=True)
class Work:
    """What both sides do.

    Attributes:
        prompts: int32 [N, PROMPT_TOKENS].
        rows: completions that run at once.
        longest: most tokens of a completion.
        stop: tokens that end one.
    """

    prompts: np.ndarray
    rows: int
    longest: int
    stop: tuple[int, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write a JSON file; the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    init = {"architecture": "qwen2", "hidden_size": options.hidden, "layers": options.layers, "heads": 4}
    spec = ModelSpec(init=init, vocab_size=VOCABULARY, max_length=PROMPT_TOKENS + options.longest, seed=0)
    prompts = np.random.default_rng(0).integers(0, VOCABULARY, (options.prompts, PROMPT_TOKENS)).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "equal": (spec, Work(prompts, options.rows, options.longest, ())),
            "geometric": (spec, Work(prompts, options.rows, options.longest, tuple(range(VOCABULARY // MEAN_LENGTH)))),
            "1 to 8": (counting(folder), counted(options.prompts, options.rows)),
        }
        results = {
            name: compare(ours(spec, work, options.threads), transformers_generate(spec, work), options.rounds)
            for name, (spec, work) in cases.items()
        }
    Console(width=110).print(table(results))
    if options.output:
        options.output.write_text(json.dumps({"options": vars(options) | {"output": None}, **results}, indent=2) + "\n")
    return 0


def counting(folder: str) -> ModelSpec:
    """A model of 3M parameters whose prompt decides how long a completion gets, saved in ``folder``."""
    build("s", "countdown").save_pretrained(folder)
    return ModelSpec(path=folder, max_length=PROMPT_TOKENS + COUNTED[1])


def counted(prompts: int, rows: int) -> Work:
    """Prompts for it, whose completions are evenly spread over :data:`COUNTED`."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(SPECIAL_TOKENS, SPECIAL_TOKENS + 8, (prompts, PROMPT_TOKENS)).astype(np.int32)
    # Behind the lower of the two characters of level n - 1 come n tokens.
    tokens[:, -1] = SPECIAL_TOKENS + 2 * (rng.integers(COUNTED[0], COUNTED[1] + 1, prompts) - 1)
    return Work(tokens, rows, COUNTED[1], (EOS,))


def ours(spec: ModelSpec, work: Work, threads: int) -> Callable[[int], np.ndarray]:
    """A function of a seed that samples all completions and returns their lengths."""
    generator = HfGenerator(HfGeneratorConfig(name="hf", max_batch_tokens=work.rows * (PROMPT_TOKENS + work.longest)))
    generator.setup(WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=threads))
    generator.load(spec, None)
    params = SamplingParams(max_new_tokens=work.longest, stop_token_ids=work.stop)

    def sample(seed: int) -> np.ndarray:
        seeds = np.random.SeedSequence(seed).generate_state(len(work.prompts), np.uint64)
        batch = generator.generate(
            SequenceBatch.from_lists(list(work.prompts), sequence_columns={"seed": seeds}), params
        )
        return batch.lengths - PROMPT_TOKENS

    return sample


def transformers_generate(spec: ModelSpec, work: Work) -> Callable[[int], np.ndarray]:
    """The same with ``transformers``, batch after batch."""
    model = build_model(spec, dtype=torch.float32).eval()

    def sample(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        lengths = []
        for start in range(0, len(work.prompts), work.rows):
            ids = torch.from_numpy(work.prompts[start : start + work.rows].astype(np.int64))
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=work.longest,
                    eos_token_id=list(work.stop) or None,
                    pad_token_id=0 if spec.path else VOCABULARY - 1,
                )[:, PROMPT_TOKENS:].numpy()
            ended = np.isin(out, work.stop)
            lengths.append(np.where(ended.any(1), ended.argmax(1) + 1, out.shape[1]))
        return np.concatenate(lengths)

    return sample


def compare(ours: Callable[[int], np.ndarray], theirs: Callable[[int], np.ndarray], rounds: int) -> dict:
    """Completion tokens a second of both, measured in turns after one round each that is not counted."""
    speeds: dict[str, list[float]] = {"ours": [], "transformers": []}
    lengths: list[np.ndarray] = []
    for seed in range(rounds + 1):
        for name, sample in (("ours", ours), ("transformers", theirs)):
            started = time.perf_counter()
            found = sample(seed)
            if seed:
                speeds[name].append(float(found.sum() / (time.perf_counter() - started)))
                lengths.append(found)
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["transformers"], strict=True)]
    low, high = np.percentile(np.concatenate(lengths), [10, 90])
    return speeds | {"ratios": ratios, "lengths": [float(low), float(high)]}


def table(results: dict) -> Table:
    """Medians of both and their ratio with its spread."""
    made = Table(title="Completion tokens a second", title_justify="left")
    for column in ("lengths", "10 % to 90 %", "rl-generation-hf", "transformers.generate", "ratio", "least to most"):
        made.add_column(column, justify="left" if column == "lengths" else "right")
    for name, found in results.items():
        made.add_row(
            name,
            "{:.0f} to {:.0f}".format(*found["lengths"]),
            f"{statistics.median(found['ours']):,.0f}",
            f"{statistics.median(found['transformers']):,.0f}",
            f"{statistics.median(found['ratios']):.2f}",
            f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}",
        )
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--rows", type=int, default=32, help="completions that run at once")
    parser.add_argument("--longest", type=int, default=128, help="most tokens of a completion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side")
    parser.add_argument("--output", type=Path, help="write every number to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
