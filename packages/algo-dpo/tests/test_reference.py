from __future__ import annotations

import logging

import numpy as np
import pytest
from rl_algo_dpo.reference import FILE, ReferenceLogprobs, digests

PROBE = 4
"""Sequences of the pass that makes sure of the model."""


def opened(directory) -> ReferenceLogprobs:
    reference = ReferenceLogprobs()
    reference.open(str(directory))
    return reference


def naive(batch, model) -> list[float]:
    logprobs = model.forward(batch)["logprobs"]
    model.forwarded.pop()
    return [float(logprobs[batch.sequence(i)].astype(np.float64).sum()) for i in range(len(batch))]


def test_it_is_the_sum_of_the_completions_log_probs(tools):
    batch, model = tools.ragged_pairs(), tools.TinyModel()
    assert ReferenceLogprobs()(batch, model).tolist() == pytest.approx(naive(batch, model), rel=1e-6)


def test_the_model_is_asked_once_for_each_completion(tools, tmp_path):
    batch, model = tools.ragged_pairs(4), tools.TinyModel()
    reference = opened(tmp_path)
    first = reference(batch.select([0, 1, 2, 3, 4, 5]), model)
    second = reference(batch, model)
    third = reference(batch, model)
    assert model.forwarded == [PROBE, 6, 2]
    assert second.tobytes() == third.tobytes()
    assert first.tobytes() == third[:6].tobytes()


def test_a_completion_that_is_in_a_batch_twice_is_computed_once(tools):
    batch, model = tools.ragged_pairs(1), tools.TinyModel()
    values = ReferenceLogprobs()(batch.select([0, 1, 0]), model)
    assert model.forwarded == [PROBE, 2]
    assert values[0] == values[2] != values[1]


def test_a_later_run_reads_the_values_from_disk(tools, tmp_path):
    batch, model, again = tools.ragged_pairs(), tools.TinyModel(), tools.TinyModel()
    before = opened(tmp_path)(batch, model)
    after = opened(tmp_path)(batch, again)
    assert again.forwarded == [PROBE]
    assert after.tobytes() == before.tobytes()


def test_another_reference_model_is_noticed_and_its_values_computed(tools, tmp_path, caplog):
    batch, model, other = tools.ragged_pairs(), tools.TinyModel(), tools.TinyModel(seed=1)
    opened(tmp_path)(batch, model)
    with caplog.at_level(logging.WARNING, "rl_algo_dpo"):
        values = opened(tmp_path)(batch, other)
    assert caplog.messages == [
        "the reference model gives other log-probs than the cached ones (another model or precision); "
        "they are computed again"
    ]
    assert values.tolist() == pytest.approx(naive(batch, other), rel=1e-6)
    third = tools.TinyModel(seed=1)
    opened(tmp_path)(batch, third)
    assert third.forwarded == [PROBE]


def test_a_first_run_warns_of_nothing(tools, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rl_algo_dpo"):
        opened(tmp_path)(tools.ragged_pairs(), tools.TinyModel())
    assert caplog.messages == []


def test_changed_tokens_or_a_changed_mask_are_other_completions(tools, tmp_path):
    batch, model = tools.ragged_pairs(2), tools.TinyModel()
    reference = opened(tmp_path)
    reference(batch, model)
    mask = batch.token_columns["loss_mask"].copy()
    mask[batch.sequence(0).stop - 1] = 0
    tokens = batch.tokens.copy()
    tokens[batch.offsets[1]] ^= 1
    changed = type(batch)(tokens, batch.offsets, {"loss_mask": mask}, batch.sequence_columns)
    assert [a == b for a, b in zip(digests(batch), digests(changed), strict=True)] == [False, False, True, True]
    assert reference(changed, model).tolist() == pytest.approx(naive(changed, model), rel=1e-6)
    assert model.forwarded == [PROBE, 4, 2]


def test_after_a_crash_in_a_write_only_that_pass_is_computed_again(tools, tmp_path):
    batch, model, again = tools.ragged_pairs(4), tools.TinyModel(), tools.TinyModel()
    reference = opened(tmp_path)
    reference(batch.select([0, 1, 2, 3]), model)
    values = reference(batch, model)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-3])
    assert opened(tmp_path)(batch, again).tobytes() == values.tobytes()
    assert again.forwarded == [PROBE, 4]


def test_without_a_folder_values_are_kept_in_memory(tools, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch, model = tools.ragged_pairs(), tools.TinyModel()
    reference = ReferenceLogprobs()
    reference(batch, model)
    reference(batch, model)
    assert model.forwarded == [PROBE, 8]
    assert list(tmp_path.iterdir()) == []
