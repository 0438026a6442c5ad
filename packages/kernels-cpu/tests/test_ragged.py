"""One row without padding, and beginnings that are computed once, against one padded row per sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_kernels_cpu.kernel import KERNEL
from rl_kernels_cpu.ragged import ATTENTION, attention, use_ragged_attention
from rl_kernels_cpu.rows import OneRow
from rl_torch.kernels.contract import Use
from rl_torch.microbatch import MicroBatch, plan
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, score_indices, wrap_model

torch.set_num_threads(1)
VOCABULARY, PAD = 64, 3


def model(architecture: str = "qwen3", *, head: str = "lm", **extra: object) -> torch.nn.Module:
    init = {"architecture": architecture, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "extra": extra}
    built = build_model(ModelSpec(init=init, vocab_size=VOCABULARY, max_length=64), dtype=torch.float64, head=head)
    built.config.pad_token_id = PAD
    return built


def groups(*, seed: int = 0, longest: int = 30) -> SequenceBatch:
    """Prompts with up to five completions each, of which parts of the completions are scored."""
    rng = np.random.default_rng(seed)
    rows, masks = [], []
    for _ in range(5):
        prompt = rng.integers(0, VOCABULARY, rng.integers(1, longest))
        for _ in range(rng.integers(1, 6)):
            rows.append(np.concatenate([prompt, rng.integers(0, VOCABULARY, rng.integers(1, longest))]))
            masks.append(((np.arange(len(rows[-1])) >= len(prompt)) * rng.random(len(rows[-1]))).astype(np.float32))
    return SequenceBatch.from_lists(rows, token_columns={"loss_mask": masks})


def outputs_and_gradients(
    built: torch.nn.Module, batch: SequenceBatch, names: tuple[str, ...], *, head: str, packing: str, multiple: int = 1
) -> list[torch.Tensor]:
    wrapped = wrap_model(built, head)
    micro = MicroBatch.build(batch, packing=OneRow() if packing == "ragged" else packing, width_multiple=multiple)
    if packing == "ragged":
        use_ragged_attention(built)
    found = compute_outputs(wrapped, micro, names, **micro.arguments)
    values = [getattr(found, name) for name in names]
    weights = torch.Generator().manual_seed(0)
    sum((v * torch.rand(v.shape, generator=weights, dtype=v.dtype)).sum() for v in values).backward()
    gradients = [p.grad.clone() for p in built.parameters() if p.grad is not None]
    built.zero_grad(set_to_none=True)
    return [v.detach() for v in values] + gradients


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("architecture", "extra"), [("qwen2", {}), ("mistral", {"sliding_window": 6}), ("llama", {})])
def test_log_probs_and_all_gradients_are_those_of_padded_rows(architecture: str, extra: dict, seed: int) -> None:
    batch, names = groups(seed=seed), ("logprobs", "entropy")
    padded = outputs_and_gradients(model(architecture, **extra), batch, names, head="lm", packing="padded")
    ragged = outputs_and_gradients(model(architecture, **extra), batch, names, head="lm", packing="ragged")
    assert len(padded) == len(ragged) > 10
    for expected, found in zip(padded, ragged, strict=True):
        # The models' norms compute in float32.
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("multiple", [1, 7])
def test_values_and_scores_are_those_of_padded_rows(multiple: int) -> None:
    batch, names = groups(), ("values", "scores")
    padded = outputs_and_gradients(model(head="scalar"), batch, names, head="scalar", packing="padded")
    ragged = outputs_and_gradients(
        model(head="scalar"), batch, names, head="scalar", packing="ragged", multiple=multiple
    )
    for expected, found in zip(padded, ragged, strict=True):
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_shared_prompt_is_in_the_row_once() -> None:
    rows = [[7, 8, 9, 1], [7, 8, 9, 2, 2], [4, 5, 6]]
    micro = MicroBatch.build(SequenceBatch.from_lists(rows), packing=OneRow())
    assert micro.input_ids.tolist() == [[4, 5, 6, 7, 8, 9, 1, 2, 2]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 3, 4]]
    assert micro.indices.tolist() == [3, 4, 5, 6, 3, 4, 5, 7, 8, 0, 1, 2]
    assert micro.last.tolist() == [6, 8, 2]
    assert micro.predictors.tolist() == [3, 4, 5, 3, 4, 5, 7, 0, 1]
    assert micro.targets.tolist() == [8, 9, 1, 8, 9, 2, 2, 5, 6]


def test_sequences_of_very_different_length_are_attended_to_in_groups() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, VOCABULARY, n) for n in (200, 190, 180, 30, 20, 10)]
    micro = MicroBatch.build(SequenceBatch.from_lists(rows), packing=OneRow())
    assert micro.arguments["rows"].shapes == ((3, 200), (3, 30))


def test_a_score_stands_at_the_last_token_that_is_no_padding() -> None:
    rows = [[7, 8, PAD, 1, PAD], [7, 8, PAD, PAD], [PAD, PAD]]
    wrapped = wrap_model(model(head="scalar"), "scalar")
    for packing, indices in ((OneRow(), [5, 3, 0]), ("padded", [3, 6, 10])):
        micro = MicroBatch.build(SequenceBatch.from_lists(rows), packing=packing)
        assert score_indices(wrapped.model.config, wrapped.head, micro).tolist() == indices


def test_it_is_known_which_models_let_their_attention_be_chosen() -> None:
    use = Use("training", "cpu")
    capped = ("gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.1})
    for architecture, extra in (("qwen2", {}), ("llama", {}), ("mistral", {"sliding_window": 3}), capped):
        assert KERNEL.fits(model(architecture, **extra), use) is None
    other = model()
    other.config._attn_implementation = "flex_attention"
    mixing = model()
    mixing._supports_attention_backend = False
    for built in (other, mixing):
        reason = "Qwen3ForCausalLM has an attention of its own, which ragged rows cannot replace"
        assert KERNEL.fits(built, use) == reason
    chunked = model("llama", layer_types=["full_attention", "chunked_attention"])
    assert KERNEL.fits(chunked, use) == "LlamaForCausalLM has layers that keep more than keys and values"


def test_without_the_model_it_is_known_where_it_cannot_be_used() -> None:
    assert KERNEL.expects(Use("training", "cpu")) is None
    assert KERNEL.expects(Use("training", "cuda")) == "it computes on the CPU"
    fixed = Use("scoring", "cpu", layout_fixed_by="backend.packing: padded")
    assert KERNEL.expects(fixed) == "it needs rows of its own, not those of backend.packing: padded"


def test_micro_batches_are_neighbours() -> None:
    lists = [[1] * n for n in (5, 9, 2, 7, 3, 3)]
    batch = SequenceBatch.from_lists(lists, sequence_columns={"unit": np.array([0, 0, 1, 1, 2, 2])})
    assert [part.tolist() for part in plan(batch, 16, packing=OneRow())] == [[0, 1], [2, 3, 4, 5]]


@pytest.mark.parametrize("budget", [1, 64, 300, 10**6])
def test_a_plan_covers_every_sequence_once_and_keeps_units_together(budget: int) -> None:
    lengths = np.random.default_rng(2).integers(1, 90, 41)
    lists = [[1] * n for n in lengths]
    batch = SequenceBatch.from_lists(lists, sequence_columns={"unit": np.arange(41) // 2})
    parts = plan(batch, budget, packing=OneRow())
    assert np.concatenate(parts).tolist() == list(range(41))
    for part in parts:
        units = set((part // 2).tolist())
        assert {i for i in range(41) if i // 2 in units} == set(part.tolist())
        assert len(units) == 1 or lengths[part].sum() <= budget


def test_a_filler_has_something_to_predict() -> None:
    micro = MicroBatch.filler(packing=OneRow())
    assert micro.is_filler
    assert micro.predictors.tolist() == [0]


def test_a_layout_serves_another_batch_of_the_same_tokens() -> None:
    first = groups()
    made = MicroBatch.build(first, packing=OneRow())
    second = first.with_columns(token={"advantages": np.ones(len(first.tokens), np.float32)})
    again, expected = made.of(second), MicroBatch.build(second, packing=OneRow())
    assert again is not None
    assert again.batch is second
    for name in ("input_ids", "position_ids", "scored", "predictors", "targets", "indices", "last", "sequence_ids"):
        assert getattr(again, name).equal(getattr(expected, name)), name


def test_calls_that_it_cannot_answer_are_refused() -> None:
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError) as caught:
        attention(None, x, x, x, None)
    assert str(caught.value) == "ragged attention needs the rows of the micro-batch"
    rows = MicroBatch.build(SequenceBatch.from_lists([[1, 2, 3]]), packing=OneRow()).arguments["rows"]
    with pytest.raises(RuntimeError) as caught:
        attention(None, x, x, x, None, rows=rows, position_bias=x)
    assert str(caught.value) == "ragged attention does not know position_bias"
    assert ATTENTION == "rl_ragged"
