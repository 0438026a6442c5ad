from __future__ import annotations

import numpy as np
import pytest
from rl_algo_dpo.config import DpoConfig
from rl_algo_dpo.dpo import Dpo
from rl_algo_dpo.kto import kl_baseline, mismatched
from rl_core.batch import SequenceBatch
from rl_core.errors import DataError

LABELLED = [
    {"prompt": "ab", "completion": "cde", "label": True, "__where__": "data.jsonl:1"},
    {"prompt": "f", "completion": "g", "label": False, "__where__": "data.jsonl:2"},
    {"prompt": "h", "completion": "ij", "label": 1, "__where__": "data.jsonl:3"},
]
PAIRS = [
    {"prompt": "ab", "chosen": "c", "rejected": "de"},
    {"prompt": "f", "chosen": "g", "rejected": "h"},
]


def kto(**fields) -> Dpo:
    return Dpo(DpoConfig(name="dpo", loss="kto", **fields))


def text(batch: SequenceBatch, index: int) -> str:
    """``prompt|completion`` without the end token."""
    span = batch.sequence(index)
    trained = batch.token_columns["loss_mask"][span] != 0
    letters = ["" if t == 0 else chr(ord("a") + t - 1) for t in batch.tokens[span]]
    start = int(np.flatnonzero(trained)[0])
    assert trained[start:].all()
    return "".join(letters[:start]) + "|" + "".join(letters[start:])


def texts(batch: SequenceBatch) -> list[str]:
    return [text(batch, i) for i in range(len(batch))]


def test_labelled_completions_become_sequences(tools):
    batch = kto().encode(LABELLED, tools.CharTokenizer())
    assert texts(batch) == ["ab|cde", "f|g", "h|ij"]
    assert batch.sequence_columns["desirable"].tolist() == [True, False, True]
    assert "unit" not in batch.sequence_columns


def test_pairs_are_taken_apart(tools):
    batch = kto().encode(PAIRS, tools.CharTokenizer())
    assert texts(batch) == ["ab|c", "ab|de", "f|g", "f|h"]
    assert batch.sequence_columns["desirable"].tolist() == [True, False, True, False]
    assert "unit" not in batch.sequence_columns


def test_a_skipped_row_takes_its_label_with_it(tools):
    batch = kto(max_tokens=4, on_long_row="skip").encode(LABELLED, tools.CharTokenizer())
    assert texts(batch) == ["f|g", "h|ij"]
    assert batch.sequence_columns["desirable"].tolist() == [False, True]


def test_a_batch_of_skipped_rows_is_empty(tools):
    assert len(kto(max_tokens=2, on_long_row="skip").encode(LABELLED, tools.CharTokenizer())) == 0


def error(rows, tools) -> str:
    with pytest.raises(DataError) as caught:
        kto().encode(rows, tools.CharTokenizer())
    return str(caught.value)


def test_a_label_that_is_no_truth_value_is_reported_with_its_line(tools):
    assert error([LABELLED[0], {**LABELLED[1], "label": "good"}], tools) == (
        "data.jsonl:2: the label must be true (desirable) or false, found 'good'"
    )


def test_a_row_with_neither_label_nor_pair_is_reported(tools):
    assert error([LABELLED[0], {"prompt": "a", "completion": "b"}], tools) == (
        "row 1 of the batch: kto needs a completion with a label (true: desirable), or a chosen and a rejected "
        "completion (columns: prompt, completion)\n"
        "    put the truth value into a column called label, or map chosen and rejected in the data section"
    )


def test_prompts_are_joined_to_the_next_completion_desirable_ones_first(tools):
    batch = kto().encode(LABELLED, tools.CharTokenizer())
    assert texts(mismatched(batch)) == ["ab|ij", "h|g", "f|cde"]


def test_the_two_sides_of_a_pair_are_not_joined(tools):
    batch = kto().encode(PAIRS, tools.CharTokenizer())
    assert texts(mismatched(batch)) == ["ab|g", "f|de", "ab|h", "f|c"]


def test_a_join_with_the_same_prompt_is_left_out(tools):
    rows = [{"prompt": "a", "completion": c, "label": True} for c in "bcd"]
    rows.append({"prompt": "e", "completion": "f", "label": True})
    assert texts(mismatched(kto().encode(rows, tools.CharTokenizer()))) == ["a|f", "e|b"]


def test_joins_are_cut_to_the_longest_sequence(tools):
    rows = [
        {"prompt": "abcdefg", "completion": "h", "label": True},
        {"prompt": "i", "completion": "abcdefg", "label": True},
    ]
    batch = mismatched(kto().encode(rows, tools.CharTokenizer()))
    assert texts(batch) == ["abcdefg|ab", "i|h"]
    assert batch.lengths.tolist() == [9, 3]


def test_the_baseline_is_beta_times_the_mean_log_ratio_of_the_joins(tools):
    batch = kto().encode(LABELLED, tools.CharTokenizer())
    models = {"policy": tools.TinyModel(seed=0), "reference": tools.TinyModel(seed=1)}
    strangers = mismatched(batch)
    sums = {name: float(model.forward(strangers)["logprobs"].sum()) for name, model in models.items()}
    mean = (sums["policy"] - sums["reference"]) / 3
    swapped = {"policy": models["reference"], "reference": models["policy"]}
    values = sorted(kl_baseline(batch, pair, 0.2) for pair in (models, swapped))
    assert values == pytest.approx([0.0, 0.2 * abs(mean)], rel=1e-5)
    assert abs(mean) > 1e-3


def test_a_batch_of_one_prompt_has_no_baseline(tools):
    batch = kto().encode(PAIRS[:1], tools.CharTokenizer())
    models = {"policy": tools.TinyModel(seed=0), "reference": tools.TinyModel(seed=1)}
    assert kl_baseline(batch, models, 0.2) == 0.0
