"""How much of the machine's matrix-multiply peak a training step reaches, and what 16 bits gain."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from gpu.flops import TransformerFlops

from compare.measuring import Measurement
from compare.results import Results
from compare.rows import make_rows
from compare.workloads import SIZES, VOCABULARY, WARMUP_STEPS, WORKLOADS


def sft_flops(size: str, lengths: list[int], trained_tokens: int) -> float:
    """Operations of an SFT step on sequences of these lengths in tokens; padding does not count.

    See :class:`gpu.flops.TransformerFlops`; norms and biases are left out of the parameters.
    """
    shape = SIZES[size]
    width, keys = shape.hidden_size, shape.hidden_size // shape.heads * shape.kv_heads
    layer = 2 * width * width + 2 * width * keys + 3 * width * shape.ffn
    head = VOCABULARY * width
    count = TransformerFlops(
        parameters=layer * shape.layers + head, head_parameters=head, layers=shape.layers, attention_width=width
    )
    return count.train(lengths, trained_tokens)


def achieved(run: Measurement, workload: str, size: str) -> float:
    """Operations a second over the measured steps of an SFT run."""
    shape = WORKLOADS[workload]
    rows = make_rows(shape, WARMUP_STEPS + run.steps)
    lengths = [len(row["prompt"]) + len(row["completion"]) + 1 for row in rows][WARMUP_STEPS * shape.rows :]
    return sft_flops(size, lengths, sum(run.trained_tokens[-run.steps :])) / run.seconds


def lines(results: Results) -> list[str]:
    """Findings as Markdown list items, as far as there are runs for them."""
    found = []
    peaks: Mapping[str, Mapping[str, float]] = results.machine.get("peaks", {})
    speeds: dict[tuple[str, str, int], dict[str, float]] = {}
    for case in results.cases("rl"):
        runs = list(results.all(case, "rl").values())
        speed = statistics.median(run.sequences_per_second for run in runs)
        speeds.setdefault((case.workload, case.size, case.threads), {})[case.precision] = speed
        peak = peaks.get(str(case.threads), {}).get(case.precision)
        if WORKLOADS[case.workload].kind == "sft" and case.size == "m" and peak:
            rate = statistics.median(achieved(run, case.workload, case.size) for run in runs)
            found.append(
                f"- {case.workload} {case.size} {case.precision}, {case.threads} threads: {rate / 1e9:,.0f} of "
                f"{peak / 1e9:,.0f} GFLOP/s, **{rate / peak:.0%}** of the matrix-multiply peak, padding not counted"
            )
    for (workload, size, threads), by_precision in sorted(speeds.items()):
        if len(by_precision) == 2:
            gain = by_precision["bf16"] / by_precision["fp32"]
            found.append(f"- {workload} {size}, {threads} threads: bf16 is **{gain:.2f}×** as fast as fp32")
    return found
