from types import SimpleNamespace

import numpy as np
import pytest
from rl_core.algorithm import AlgorithmBase
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.generator import SamplingParams
from rl_core.rollout.cursor import DataCursor
from rl_core.rollout.rewards import RewardPipeline
from rl_core.rollout.rollouts import RolloutFeed


class Letters:
    def encode_prompt(self, prompt):
        return np.array([ord(c) for c in prompt], np.int32)

    def decode(self, tokens):
        return "".join(chr(t) for t in tokens)


class Echo:
    """A generator whose completions are the prompt's letter, once per sample."""

    def generate(self, requests, sampling):
        rows = [(i, k) for i in range(len(requests)) for k in range(sampling.n)]
        tokens = [
            np.append(requests.tokens[requests.sequence(i)], requests.tokens[requests.offsets[i]]) for i, _ in rows
        ]
        return SequenceBatch.from_lists(
            tokens,
            token_columns={"loss_mask": [np.array([0, 1], np.float32)] * len(rows)},
            sequence_columns={
                "request": np.array([i for i, _ in rows]),
                "sample": np.array([k for _, k in rows]),
                "truncated": np.zeros(len(rows), bool),
                "prompt_length": np.ones(len(rows), np.int64),
            },
        )


class Varied:
    """Completions of vowels get different rewards within their group, all others the same."""

    def score(self, samples):
        return [float(i % 2) if s.completion in "aeiou" else 0.0 for i, s in enumerate(samples)]


class KeepsVaried(AlgorithmBase):
    def keep(self, batch):
        rewards, groups = batch.sequence_columns["reward"], batch.sequence_columns["group"]
        varied = [g for g in np.unique(groups) if np.ptp(rewards[groups == g]) > 0]
        return np.isin(groups, varied)


def feed(letters, *, rows_per_step, rounds):
    choice = SimpleNamespace(name="varied", package="test", config=SimpleNamespace(weight=1.0))
    return RolloutFeed(
        [{"prompt": letter} for letter in letters],
        algorithm=KeepsVaried(None),
        tokenizer=Letters(),
        plan=BatchPlan("rollouts", rows_per_step=rows_per_step, group_size=2, max_resample_rounds=rounds),
        cursor=DataCursor(size=len(letters), seed=0),
        router=Echo(),
        sampling=SamplingParams(n=2, max_new_tokens=1),
        rewards=RewardPipeline([(choice, Varied())]),
        stage="train",
        seed=0,
        max_length=8,
        samples_per_step=3,
    )


def prompts(batch):
    return "".join(chr(t) for t in batch.tokens[batch.offsets[:-1]])


def test_without_resampling_every_group_is_trained_on():
    draw = feed("abcd", rows_per_step=4, rounds=0).next(1)
    assert sorted(prompts(draw.batch)) == list("aabbccdd")
    assert draw.batch.sequence_columns["group"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert draw.metrics["rollout/reward_mean"] == pytest.approx(1 / 8)
    assert len(draw.samples) == 3
    assert "rollout/rounds" not in draw.metrics


def test_resampling_draws_until_the_step_is_full_of_wanted_groups():
    source = feed("abcdefgh", rows_per_step=2, rounds=7)
    draw = source.next(1)
    groups = draw.batch.sequence_columns["group"]
    assert set(prompts(draw.batch)) == {"a", "e"}
    assert len(draw.batch) == 4
    assert len(set(groups.tolist())) == 2
    assert draw.metrics["rollout/rounds"] == source.cursor.position / 2
    assert draw.metrics["rollout/kept_fraction"] == 2 / source.cursor.position


def test_resampling_ends_with_its_rounds_and_trains_on_what_there_is():
    source = feed("abcdfghjkl", rows_per_step=5, rounds=1)
    draw = source.next(1)
    assert source.cursor.position == 10
    assert prompts(draw.batch) == "aa"
    nothing = feed("bcd", rows_per_step=3, rounds=1).next(1)
    assert sorted(prompts(nothing.batch)) == list("bbccdd")
    assert nothing.metrics["rollout/kept_fraction"] == 0.0
