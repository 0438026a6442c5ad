"""The policy losses against padded float64 autograd, and against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from rl_algo_grpo.loss import policy_loss, sequence_log_ratio, weighted_logprobs
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_torch.losses import TokenOutputs

NO_CORRECTION = {"correction": "none", "level": "token", "low": 0.0, "high": 1.0}
OPTIONS = {
    "loss": "clip",
    "clip_low": 0.2,
    "clip_high": 0.28,
    "dual_clip": None,
    "reduction": "token",
    "constant_length": 6,
    "kl_coefficient": 0.0,
    "kl_estimator": "k3",
    "entropy_coefficient": 0.0,
    "mismatch": NO_CORRECTION,
    "on_policy": False,
}

WITH_ENTROPY = ("logprobs", "entropy")


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def outputs(logprobs: torch.Tensor, ids: list[int], entropy: torch.Tensor | None = None) -> TokenOutputs:
    count = max(ids, default=-1) + 1
    return TokenOutputs(logprobs, entropy, None, None, torch.tensor(ids, dtype=torch.int64), count)


@pytest.fixture
def problem(tools):
    """Eight ragged sequences with random float64 logits and everything a loss may read."""
    rng = np.random.default_rng(1)
    batch = tools.rollouts(tools.TinyModel(), seed=1)
    logits = [torch.tensor(rng.normal(size=(n, 12)), requires_grad=True) for n in batch.lengths]
    exact = tools.outputs_from_logits(logits, batch, temperature=0.7).logprobs.detach().numpy()
    mask = batch.token_columns["loss_mask"]
    columns = {
        name: ((exact + rng.normal(scale=spread, size=len(exact))) * mask)
        for name, spread in (("old_logprobs", 0.3), ("ref_logprobs", 0.5))
    }
    columns["sampled_logprobs"] = (columns["old_logprobs"] + rng.normal(scale=0.3, size=len(exact))) * mask
    columns["advantages"] = rng.normal(size=8)[batch.sequence_ids]
    return batch.with_columns(token=columns), logits


def padded(batch: SequenceBatch, column: np.ndarray) -> torch.Tensor:
    out = torch.zeros(len(batch), int(batch.lengths.max()), dtype=torch.float64)
    for i in range(len(batch)):
        part = column[batch.sequence(i)]
        out[i, : len(part)] = torch.from_numpy(np.asarray(part, np.float64))
    return out


def naive_distributions(batch: SequenceBatch, logits: list[torch.Tensor], width: int):
    """log π of each token and the entropy it was drawn with, both [B, width], token by token."""
    zero = torch.zeros((), dtype=torch.float64)
    logprobs, entropies = [], []
    for i, scores in enumerate(logits):
        tokens = batch.tokens[batch.sequence(i)]
        row, entropy = [zero] * width, [zero] * width
        for t in range(1, len(tokens)):
            p = torch.softmax(scores[t - 1] / 0.7, dim=0)
            row[t], entropy[t] = torch.log(p[int(tokens[t])]), -(p * torch.log(p)).sum()
        logprobs.append(torch.stack(row))
        entropies.append(torch.stack(entropy))
    return torch.stack(logprobs), torch.stack(entropies)


def naive_weights(w: torch.Tensor, mask: torch.Tensor, mismatch: dict) -> torch.Tensor:
    low, high = mismatch["low"], mismatch["high"]
    if mismatch["correction"] == "none":
        return torch.ones_like(w)
    if mismatch["correction"] == "seq-mask":
        geometric = torch.stack([row[m > 0].prod() ** (1 / m.sum()) for row, m in zip(w, mask, strict=True)])
        return ((geometric >= low) & (geometric <= high)).double()[:, None].expand_as(w)
    if mismatch["level"] == "sequence":
        w = torch.stack([row[m > 0].prod() for row, m in zip(w, mask, strict=True)])[:, None].expand_as(w)
    return w.clip(max=high) if mismatch["correction"] == "tis" else torch.where((w < low) | (w > high), 0.0, w)


def naive_loss(batch: SequenceBatch, logits: list[torch.Tensor], options: dict) -> torch.Tensor:
    """The formulas on padded [B, L] matrices, written independently of the package."""
    columns = {name: padded(batch, column) for name, column in batch.token_columns.items()}
    mask, advantage = columns["loss_mask"], columns["advantages"]
    logprobs, entropies = naive_distributions(batch, logits, mask.shape[1])
    old = logprobs.detach() if options["on_policy"] else columns["old_logprobs"]
    low, high = 1 - options["clip_low"], 1 + options["clip_high"]
    ratio = torch.exp(logprobs - old)
    if options["loss"] == "gspo":
        # The paper's own form: one differentiable ratio per sequence.
        mean = ((logprobs - old) * mask).sum(1) / mask.sum(1)
        ratio = torch.exp(mean)[:, None].expand_as(mask)
    if options["loss"] == "cispo":
        loss = -ratio.detach().clip(low, high) * advantage * logprobs
    elif options["loss"] == "reinforce":
        loss = -advantage * logprobs
    else:
        loss = -torch.minimum(advantage * ratio, advantage * ratio.clip(low, high))
    if options["dual_clip"]:
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * options["dual_clip"]), loss)
    loss = naive_weights(torch.exp(old - columns["sampled_logprobs"]), mask, options["mismatch"]) * loss
    if options["kl_coefficient"]:
        d = columns["ref_logprobs"] - logprobs
        kl = {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - 1 - d}[options["kl_estimator"]]
        loss = loss + options["kl_coefficient"] * kl
    total = {
        "token": (loss * mask).sum() / mask.sum(),
        "sequence": ((loss * mask).sum(1) / mask.sum(1)).mean(),
        "constant": (loss * mask).sum() / (len(batch) * options["constant_length"]),
    }[options["reduction"]]
    return total - options["entropy_coefficient"] * (entropies * mask).sum() / mask.sum()


def correction(name: str, low: float, high: float, level: str = "token") -> dict:
    return {"mismatch": {"correction": name, "level": level, "low": low, "high": high}}


CASES = {
    f"{loss} {reduction}": {"loss": loss, "reduction": reduction}
    for loss, reduction in itertools.product(("clip", "gspo", "cispo", "reinforce"), ("token", "sequence", "constant"))
} | {
    "gspo narrow": {"loss": "gspo", "reduction": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo without lower bound": {"loss": "cispo", "clip_low": 1.0, "clip_high": 0.1},
    "dual clip": {"dual_clip": 1.2},
    "on policy": {"on_policy": True},
    "gspo on policy": {"loss": "gspo", "on_policy": True},
    "kl k1": {"kl_coefficient": 0.1, "kl_estimator": "k1"},
    "kl k2": {"kl_coefficient": 0.1, "kl_estimator": "k2"},
    "kl k3 per sequence": {"kl_coefficient": 0.1, "kl_estimator": "k3", "reduction": "sequence"},
    "entropy bonus": {"entropy_coefficient": 0.05},
    "entropy bonus per sequence": {"entropy_coefficient": 0.05, "reduction": "sequence"},
    "tis": correction("tis", 0.0, 1.1),
    "tis per sequence": correction("tis", 0.0, 1.1, "sequence"),
    "icepop": correction("icepop", 0.8, 1.2),
    "icepop per sequence": correction("icepop", 0.7, 1.4, "sequence"),
    "seq-mask": correction("seq-mask", 0.9, 1.1),
    "everything": {
        "loss": "gspo",
        "reduction": "sequence",
        "kl_coefficient": 0.1,
        "entropy_coefficient": 0.02,
        **correction("icepop", 0.7, 1.5, "sequence"),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_a_naive_padded_reference(tools, problem, case):
    batch, logits = problem
    options = {**OPTIONS, **CASES[case]}
    expected = naive_loss(batch, logits, options)
    expected_gradient = torch.autograd.grad(expected, logits)

    names = WITH_ENTROPY if options["entropy_coefficient"] > 0 else ("logprobs",)
    computed = tools.outputs_from_logits(logits, batch, names, temperature=0.7)
    loss, _ = policy_loss(computed, tools.columns_of(batch, torch.float64), Scale.of(batch), **options)
    gradient = torch.autograd.grad(loss, logits)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert any(g.abs().max() > 1e-4 for g in gradient)
    for found, wanted in zip(gradient, expected_gradient, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_batch_add_up_to_the_whole(tools, problem, case):
    batch, logits = problem
    options = {**OPTIONS, **CASES[case]}
    scale = Scale.of(batch)

    def run(indices: list[int]):
        part = batch.select(indices)
        computed = tools.outputs_from_logits(
            [logits[i] for i in indices], part, ("logprobs", "entropy"), temperature=0.7
        )
        return policy_loss(computed, tools.columns_of(part, torch.float64), scale, **options)

    whole, metrics = run(list(range(8)))
    parts = [run(indices) for indices in ([3], [0, 7, 1], [2, 4, 5, 6])]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-12)
    for name, value in metrics.items():
        values = [part[name].item() for _, part in parts]
        joined = max(values) if "/max_" in name else sum(values)
        assert joined == pytest.approx(value.item(), rel=1e-12), name


@pytest.mark.parametrize("case", CASES)
def test_an_empty_micro_batch_adds_nothing(tools, problem, case):
    batch, _ = problem
    empty = torch.zeros(0, requires_grad=True)
    columns = tools.columns_of(batch.select([]), torch.float32)
    loss, metrics = policy_loss(
        outputs(empty, [], torch.zeros(0)), columns, Scale.of(batch), **{**OPTIONS, **CASES[case]}
    )
    assert loss.item() == 0.0
    assert all(value.item() == 0.0 for value in metrics.values())


@pytest.mark.parametrize("case", CASES)
def test_masked_tokens_are_ignored_whatever_they_hold(tools, problem, case):
    batch, logits = problem
    options = {**OPTIONS, **CASES[case]}

    def run(columns):
        computed = tools.outputs_from_logits(logits, batch, WITH_ENTROPY, temperature=0.7)
        return policy_loss(computed, columns, Scale.of(batch), **options)

    clean = tools.columns_of(batch, torch.float64)
    dirty = dict(clean)
    for name in ("old_logprobs", "ref_logprobs", "sampled_logprobs"):
        dirty[name] = torch.where(clean["loss_mask"] != 0, clean[name], torch.full_like(clean[name], float("nan")))
    loss, metrics = run(clean)
    dirty_loss, dirty_metrics = run(dirty)
    assert dirty_loss.item() == loss.item()
    assert {k: v.item() for k, v in dirty_metrics.items()} == {k: v.item() for k, v in metrics.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_step_without_any_token_in_the_loss_has_a_loss_and_gradient_of_zero(tools, problem, case):
    batch, logits = problem
    batch = batch.with_columns(token={"loss_mask": np.zeros(len(batch.tokens), np.float32)})
    computed = tools.outputs_from_logits(logits, batch, WITH_ENTROPY, temperature=0.7)
    loss, metrics = policy_loss(
        computed, tools.columns_of(batch, torch.float64), Scale.of(batch), **{**OPTIONS, **CASES[case]}
    )
    assert loss.item() == 0.0
    assert all(not g.any() for g in torch.autograd.grad(loss, logits))
    assert all(math.isfinite(value.item()) for value in metrics.values())


def test_the_sequence_ratio_by_hand():
    """Token ratios 2 and 1/8: s = exp((ln 2 - ln 8) / 2) = 1/2, and a single-token sequence keeps its own."""
    log_ratio = tensor(math.log(2), -math.log(8), math.log(3)).requires_grad_()
    value = sequence_log_ratio(log_ratio, torch.ones(3, dtype=torch.float64), outputs(log_ratio, [0, 0, 1]))
    assert value.exp().tolist() == pytest.approx([0.5, 0.5, 3.0])
    value.exp().sum().backward()
    assert log_ratio.grad.tolist() == pytest.approx([0.5, 0.5, 3.0])  # s, for each of its tokens


@pytest.mark.parametrize(("advantage", "held"), [(1.0, False), (-1.0, True)])
def test_a_gspo_loss_and_its_gradient_by_hand(advantage, held):
    """s = 1/2, below 1 - ε = 0.9: a good completion keeps its gradient, a bad one is held at 0.9."""
    logprobs = tensor(math.log(0.5), math.log(0.1)).requires_grad_()
    columns = {
        "loss_mask": tensor(1, 1),
        "advantages": tensor(advantage, advantage),
        "old_logprobs": tensor(math.log(0.25), math.log(0.8)),
        "sampled_logprobs": tensor(math.log(0.25), math.log(0.8)),
    }
    options = {**OPTIONS, "loss": "gspo", "reduction": "sequence", "clip_low": 0.1, "clip_high": 0.1}
    loss, metrics = policy_loss(outputs(logprobs, [0, 0]), columns, Scale(2.0, 1.0, 1.0), **options)
    loss.backward()
    assert loss.item() == pytest.approx(0.9 if held else -0.5)
    # d(-s)/d log π_t = -s / |y| = -1/4
    assert logprobs.grad.tolist() == pytest.approx([0.0, 0.0] if held else [-0.25, -0.25])
    assert metrics["policy/clip_fraction"].item() == (1.0 if held else 0.0)
    assert metrics["policy/max_ratio"].item() == pytest.approx(0.5)


def test_a_cispo_loss_and_its_gradient_by_hand():
    """Ratios 8 (held at 5), 2 and 1/4, with A = 2: every token keeps a gradient of -weight · A."""
    logprobs = torch.log(tensor(0.8, 0.5, 0.1)).requires_grad_()
    log_ratio = torch.log(tensor(8.0, 2.0, 0.25))
    loss, ratio, held = weighted_logprobs(
        logprobs + (log_ratio - logprobs.detach()), logprobs, tensor(2, 2, 2), clip_low=1.0, clip_high=4.0
    )
    loss.sum().backward()
    assert ratio.tolist() == pytest.approx([8.0, 2.0, 0.25])
    assert held.tolist() == [1.0, 0.0, 0.0]
    assert loss.tolist() == pytest.approx([-10 * math.log(0.8), -4 * math.log(0.5), -0.5 * math.log(0.1)])
    assert logprobs.grad.tolist() == pytest.approx([-10.0, -4.0, -0.5])


def test_a_reinforce_loss_by_hand():
    logprobs = torch.log(tensor(0.5, 0.25)).requires_grad_()
    columns = {"loss_mask": tensor(1, 1), "advantages": tensor(1, -2), "sampled_logprobs": logprobs.detach()}
    options = {**OPTIONS, "loss": "reinforce", "on_policy": True, "reduction": "constant", "constant_length": 1}
    loss, metrics = policy_loss(outputs(logprobs, [0, 1]), columns, Scale(2.0, 2.0, 2.0), **options)
    loss.backward()
    assert loss.item() == pytest.approx((-math.log(0.5) + 2 * math.log(0.25)) / 2)
    assert logprobs.grad.tolist() == [-0.5, 1.0]
    assert "policy/clip_fraction" not in metrics


@pytest.mark.parametrize(
    ("mismatch", "loss", "fraction"),
    [
        # w = 4, 1/2 | 1/4; per-token losses -1, -1 | -1
        (correction("tis", 0.0, 2.0), -(2 + 0.5 + 0.25) / 3, None),
        (correction("tis", 0.0, 3.0, "sequence"), -(2 + 2 + 0.25) / 3, None),
        (correction("icepop", 0.5, 5.0), -(4 + 0.5 + 0) / 3, 1 / 3),
        (correction("icepop", 0.5, 5.0, "sequence"), -(2 + 2 + 0) / 3, 1 / 3),
        (correction("seq-mask", 0.2, 1.0), -(0 + 0 + 1) / 3, 2 / 3),
        ({"mismatch": NO_CORRECTION}, -1.0, None),
    ],
)
def test_mismatch_corrections_by_hand(mismatch, loss, fraction):
    logprobs = torch.log(tensor(0.4, 0.2, 0.1)).requires_grad_()
    columns = {
        "loss_mask": tensor(1, 1, 1),
        "advantages": tensor(1, 1, 1),
        "sampled_logprobs": torch.log(tensor(0.1, 0.4, 0.4)),
    }
    found, metrics = policy_loss(
        outputs(logprobs, [0, 0, 1]), columns, Scale(3.0, 2.0, 2.0), **{**OPTIONS, **mismatch, "on_policy": True}
    )
    assert found.item() == pytest.approx(loss)
    masked_fraction = metrics.get("mismatch/masked_fraction")
    assert (masked_fraction is None) == (fraction is None)
    if fraction is not None:
        assert masked_fraction.item() == pytest.approx(fraction)


def test_the_correction_leaves_the_kl_term_alone():
    logprobs = torch.log(tensor(0.5)).requires_grad_()
    columns = {
        "loss_mask": tensor(1),
        "advantages": tensor(1),
        "sampled_logprobs": torch.log(tensor(0.01)),
        "ref_logprobs": torch.log(tensor(1.0)),
    }
    options = {**OPTIONS, "kl_coefficient": 0.1, "on_policy": True, **correction("icepop", 0.5, 5.0)}
    loss, metrics = policy_loss(outputs(logprobs, [0]), columns, Scale(1.0, 1.0, 1.0), **options)
    assert loss.item() == pytest.approx(0.1 * 0.3068528)
    assert metrics["mismatch/masked_fraction"].item() == 1.0


def test_metrics_of_a_batch_worked_out_by_hand(tools):
    """Two completion tokens, A = 1: ratios 2 (clipped at 1.28) and 1; the sampler reported half and the same."""
    batch = SequenceBatch.from_lists(
        [[5, 1, 2]],
        token_columns={
            "loss_mask": [np.array([0, 1, 1], np.float32)],
            "advantages": [np.ones(3, np.float32)],
            "old_logprobs": [np.log([1, 0.25, 0.5])],
            "ref_logprobs": [np.log([1, 1.0, 0.5])],
            "sampled_logprobs": [np.log([1, 0.125, 0.5])],
        },
    )
    computed = outputs(torch.log(tensor(1, 0.5, 0.5)), [0, 0, 0], entropy=tensor(9.0, 0.5, 0.25))
    options = {**OPTIONS, "kl_coefficient": 0.1, "entropy_coefficient": 0.01}
    loss, metrics = policy_loss(computed, tools.columns_of(batch, torch.float64), Scale.of(batch), **options)

    kl = 0.3068528 / 2  # k3 at d = ln 2 for the first token, 0 for the second
    assert loss.item() == pytest.approx(-(1.28 + 1) / 2 + 0.1 * kl - 0.01 * 0.375)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "policy/clip_fraction": 0.5,
            "policy/max_ratio": 2.0,
            "policy/kl_reference": kl,
            "policy/entropy": 0.375,
            "mismatch/mean_w": (2 + 1) / 2,
            "mismatch/kl_k3": kl,
            "mismatch/max_abs_logprob_gap": math.log(2),
        }
    )
