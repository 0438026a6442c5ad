import contextlib

import numpy as np
import pytest
from rl_core.algorithm import AlgorithmBase
from rl_core.batch import SequenceBatch
from rl_core.component import Component, ComponentChoice
from rl_core.config.environment import EnvironmentConfig
from rl_core.config.sections import RewardConfig
from rl_core.contracts.algorithm import BatchPlan
from rl_core.contracts.environment import Turn
from rl_core.contracts.generator import SamplingParams
from rl_core.data.cursor import DataCursor
from rl_core.errors import RLError
from rl_rollout.conversations import Conversations
from rl_rollout.environment_calls import EnvironmentCalls
from rl_rollout.prompts import Prompts
from rl_rollout.rewards.scoring import InThisProcess, WeightedRewards
from rl_rollout.rollouts import RolloutFeed


class Letters:
    def encode_prompt(self, prompt):
        return np.array([ord(c) for c in prompt], np.int32)

    def encode_reply(self, messages, *, chat, ended):
        return self.encode_prompt("".join(m["content"] for m in messages))

    def shorten(self, text, max_tokens):
        return text[:max_tokens]

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
            token_columns={
                "loss_mask": [np.append(np.zeros(len(t) - 1, np.float32), np.float32(1)) for t in tokens],
                "sampled_logprobs": [np.zeros(len(t), np.float32) for t in tokens],
                "weights_version": [np.zeros(len(t), np.int32) for t in tokens],
            },
            sequence_columns={
                "request": np.array([i for i, _ in rows]),
                "sample": np.array([k for _, k in rows]),
                "truncated": np.zeros(len(rows), bool),
                "prompt_length": requests.lengths[[i for i, _ in rows]],
            },
        )

    def metrics(self):
        return {"rollout/replicas": 1.0}


class Varied:
    """Completions of vowels get different rewards within their group, all others the same."""

    def score(self, samples):
        return [float(i % 2) if s.completion in "aeiou" else 0.0 for i, s in enumerate(samples)]


class KeepsVaried(AlgorithmBase):
    def keep(self, batch):
        rewards, groups = batch.sequence_columns["reward"], batch.sequence_columns["group"]
        varied = [g for g in np.unique(groups) if np.ptp(rewards[groups == g]) > 0]
        return np.isin(groups, varied)


def feed(letters, *, rows_per_step, rounds, reward=None, on_error="error", **options):
    component = Component("reward", "varied", "test:Varied", "test:Config", "")
    config = RewardConfig(name="varied", on_error=on_error)
    choice = ComponentChoice("reward", "varied", component, "test", config)
    options = {"cursor": DataCursor(size=len(letters), seed=0), **options}
    rows = [{"prompt": letter} for letter in letters]
    return RolloutFeed(
        rows,
        algorithm=KeepsVaried(None),
        tokenizer=Letters(),
        plan=BatchPlan("rollouts", rows_per_step=rows_per_step, group_size=2, max_resample_rounds=rounds),
        router=Echo(),
        sampling=SamplingParams(n=2, max_new_tokens=1),
        rewards=WeightedRewards([(choice, InThisProcess(reward or Varied()))]),
        stage="train",
        seed=0,
        prompts=Prompts(rows, tokenizer=Letters(), max_length=8, max_new_tokens=1),
        samples_per_step=3,
        **options,
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
    assert draw.metrics["rollout/replicas"] == 1.0


def test_only_the_generators_need_memory_while_a_batch_is_made():
    blocks = []

    @contextlib.contextmanager
    def generating():
        blocks.append("begins")
        yield
        blocks.append("ends")

    class Watched(Varied):
        def score(self, samples):
            blocks.append("scores")
            return super().score(samples)

    feed("ab", rows_per_step=2, rounds=0, reward=Watched(), generating=generating).next(1)
    assert blocks == ["begins", "scores", "ends"]


def test_resampling_draws_until_the_step_is_full_of_wanted_groups():
    source = feed("abcdefgh", rows_per_step=2, rounds=7)
    draw = source.next(1)
    groups = draw.batch.sequence_columns["group"]
    assert set(prompts(draw.batch)) == {"a", "e"}
    assert len(draw.batch) == 4
    assert len(set(groups.tolist())) == 2
    assert draw.metrics["rollout/rounds"] == source.position / 2
    assert draw.metrics["rollout/kept_fraction"] == 2 / source.position


def test_resampling_ends_with_its_rounds_and_trains_on_what_there_is():
    source = feed("abcdfghjkl", rows_per_step=5, rounds=1)
    draw = source.next(1)
    assert source.position == 10
    assert prompts(draw.batch) == "aa"
    nothing = feed("bcd", rows_per_step=3, rounds=1).next(1)
    assert sorted(prompts(nothing.batch)) == list("bbccdd")
    assert nothing.metrics["rollout/kept_fraction"] == 0.0


class Doubts:
    """Asks once whether the model is sure, and pays half a point for the second answer."""

    def start(self, row, seed):
        return None

    def step(self, state, conversation):
        if len(conversation) == 2:
            return Turn([{"role": "user", "content": "?"}], done=False)
        return Turn(done=True, reward=0.5)


def conversing(letters, **options):
    """A feed like the others, whose completions are conversations of two turns."""
    source = feed(letters, **options)
    calls = EnvironmentCalls(Doubts(), name="environment 'doubts' (test)", timeout_s=60, concurrency=4)
    conversations = Conversations(
        calls, config=EnvironmentConfig(name="doubts"), router=Echo(), tokenizer=Letters(), max_length=8
    )
    return feed(letters, **options, conversations=conversations), source


def test_conversations_share_everything_after_generation_with_single_turns():
    several, single = conversing("abcdefgh", rows_per_step=2, rounds=7)
    draw, plain = several.next(1), single.next(1)
    assert several.position == single.position, "dynamic sampling keeps the same groups"
    columns, plain_columns = draw.batch.sequence_columns, plain.batch.sequence_columns
    assert columns["group"].tolist() == plain_columns["group"].tolist()
    assert columns["reward"].tolist() == (plain_columns["reward"] + 0.5).tolist()
    assert set(prompts(draw.batch)) == {"a", "e"}
    assert draw.batch.token_columns["loss_mask"].tolist() == [0, 1, 0, 1] * 4
    assert draw.metrics["rollout/completion_tokens_mean"] == 2.0
    new = {name: draw.metrics[name] for name in set(draw.metrics) - set(plain.metrics)}
    assert new.pop("time/environment_s") >= 0.0
    assert new == {
        "rollout/turns_mean": 2.0,
        "rollout/environment_tokens_mean": 1.0,
        "rollout/environment_reward_mean": 0.5,
        "rollout/environment_errors": 0.0,
    }


def test_the_sample_log_shows_the_conversation_and_rewards_judge_its_last_turn():
    several, _ = conversing("b", rows_per_step=1, rounds=0)
    row = several.next(1).samples[0]
    assert row == {
        "prompt": "b",
        "completion": "assistant: b\nuser: ?\nassistant: b",
        "answer": None,
        "reward": 0.5,
        "messages": [
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "b"},
        ],
    }


def test_a_feed_that_goes_on_after_a_resume_repeats_the_conversations():
    class Rolls(Doubts):
        """Asks with a letter that it draws."""

        def start(self, row, seed):
            return chr(ord("a") + seed % 26)

        def step(self, state, conversation):
            turn = super().step(state, conversation)
            return turn if turn.done else Turn([{"role": "user", "content": state}], done=False)

    def rolling(**options):
        calls = EnvironmentCalls(Rolls(), name="environment 'rolls' (test)", timeout_s=60, concurrency=4)
        config = EnvironmentConfig(name="rolls")
        conversations = Conversations(calls, config=config, router=Echo(), tokenizer=Letters(), max_length=8)
        return feed("abcdefgh", rows_per_step=3, rounds=0, conversations=conversations, **options)

    first = rolling()
    first.next(1)
    resumed = rolling(cursor=DataCursor(size=8, seed=0, position=first.position))
    expected, again = first.next(2).batch, resumed.next(2).batch
    assert again.tokens.tolist() == expected.tokens.tolist()
    asked = expected.tokens[expected.token_columns["loss_mask"] == 0]
    assert len(set(asked.tolist())) > 3, "each conversation has a seed of its own"


class FailsFor(Varied):
    """Cannot score the completions in ``letters``; with ``every_other`` only the second of two."""

    def __init__(self, letters, *, every_other=False):
        self.letters, self.every_other, self.seen = letters, every_other, 0

    def score(self, samples):
        return [self.one(s) for s in samples]

    def one(self, sample):
        if sample.completion not in self.letters:
            return 0.25
        self.seen += 1
        return 0.5 if self.every_other and self.seen % 2 else float("nan")


def dropping(letters, reward, *, rounds=0):
    return feed(letters, rows_per_step=len(letters), rounds=rounds, reward=reward, on_error="drop")


def test_dropped_completions_are_in_no_batch_and_no_mean():
    draw = dropping("abc", FailsFor("bc", every_other=True)).next(1)
    assert sorted(prompts(draw.batch)) == list("aabc")
    groups = draw.batch.sequence_columns["group"].tolist()
    assert sorted(groups.count(g) for g in set(groups)) == [1, 1, 2]
    assert sorted(draw.batch.sequence_columns["reward"].tolist()) == [0.25, 0.25, 0.5, 0.5]
    assert draw.metrics["rollout/reward_mean"] == 0.375
    counts = {name: draw.metrics[f"rollout/reward_{name}"] for name in ("failures", "timeouts", "dropped")}
    assert counts == {"failures": 2.0, "timeouts": 0.0, "dropped": 2.0}
    shown = [row["reward"] for row in dropping("a", FailsFor("a", every_other=True)).next(1).samples]
    assert str(shown) == "[0.5, nan]"


def test_a_group_that_is_dropped_as_a_whole_is_absent():
    draw = dropping("ab", FailsFor("b")).next(1)
    assert prompts(draw.batch) == "aa"
    assert len(set(draw.batch.sequence_columns["group"].tolist())) == 1


def test_failures_of_all_rounds_of_resampling_are_counted():
    source = feed("abcdef", rows_per_step=3, rounds=1, reward=FailsFor("bdf"), on_error="drop")
    draw = source.next(1)
    assert draw.metrics["rollout/rounds"] == 2.0
    assert draw.metrics["rollout/reward_failures"] == 6.0
    assert "b" not in prompts(draw.batch)


def test_steps_without_any_score_are_empty_and_three_of_them_stop_the_run():
    source = dropping("ab", FailsFor("ab"))
    for step in (1, 2):
        draw = source.next(step)
        assert len(draw.batch) == 0
        assert "rollout/reward_mean" not in draw.metrics
        assert draw.metrics["rollout/reward_dropped"] == 4.0
    with pytest.raises(RLError) as raised:
        source.next(3)
    assert str(raised.value) == (
        "stage 'train', step 3: for 3 steps in a row, rewards failed for every completion and on_error: drop left "
        "nothing to train on\n"
        "    the warnings above say how they fail; fix them, then continue with `rl resume`"
    )
