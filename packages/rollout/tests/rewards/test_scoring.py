"""Adding up rewards, and what becomes of samples that a reward cannot score."""

import math

import numpy as np
import pytest
from rl_core.component import Component, ComponentChoice
from rl_core.config.sections import RewardConfig
from rl_core.contracts.reward import Sample
from rl_core.errors import DataError, RLError
from rl_rollout.rewards.scoring import InThisProcess, WeightedRewards

SAMPLES = [
    Sample(row={"answer": c, "__where__": f"rows.jsonl:{i}"}, prompt="p" * 70, completion=c)
    for i, c in enumerate("abc", start=1)
]
THE_SAMPLE = f"    the sample: prompt '{'p' * 60}…', completion 'b'\n"
INSTEAD = (
    "set its on_error: zero (such a sample scores 0) or drop (it is left out of training); "
    "rollout/reward_failures counts them"
)


def choice(name="mine", **fields):
    component = Component("reward", name, "mine.reward:Mine", "mine.config:MineConfig", "")
    return ComponentChoice("reward", name, component, "rl-mine", RewardConfig(name=name, **fields))


class Mine:
    """Scores with a function of the samples, and remembers how many it was given at a time."""

    def __init__(self, function):
        self.function = function
        self.asked = []

    def score(self, samples):
        self.asked.append(len(samples))
        return self.function(samples)


class Later(Mine):
    async def score(self, samples):
        return super().score(samples)


def fixed(*scores):
    return Mine(lambda samples: scores)


def by_answer(**scores):
    """What each sample gets by its completion; an exception is raised for the whole call."""

    def function(samples):
        values = [scores[s.completion] for s in samples]
        for value in values:
            if isinstance(value, Exception):
                raise value
        return values

    return Mine(function)


def pipeline(*pairs):
    return WeightedRewards([(c, InThisProcess(reward)) for c, reward in pairs])


def test_rewards_are_added_up_with_their_weights():
    later = Later(lambda samples: [1.0, 1.0, 1.0])
    scores = pipeline((choice("one", weight=2.0), fixed(1, 0, 0)), (choice("two", weight=0.5), later)).score(SAMPLES)
    assert scores.rewards.tolist() == [2.5, 0.5, 0.5]
    assert scores.metrics == {"rollout/one/reward_mean": pytest.approx(1 / 3), "rollout/two/reward_mean": 1.0}
    assert scores.counts == {}


def test_further_numbers_of_a_reward_become_metrics():
    parts = [{"reward": 1.0, "format": np.float32(0.5)}, {"reward": 0.0, "format": 0.0}, {"reward": 0.0, "format": 1}]
    scores = pipeline((choice(), fixed(*parts))).score(SAMPLES)
    assert scores.rewards.tolist() == [1.0, 0.0, 0.0]
    assert scores.metrics == {"rollout/mine/format": 0.5}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (math.nan, "returned nan, not a finite number"),
        (-math.inf, "returned -inf, not a finite number"),
        ("1", "returned '1', not a finite number"),
        (None, "returned None, not a finite number"),
        ({"reward": 1.0, "format": math.nan}, "returned nan for 'format', not a finite number"),
        ({"score": 1.0}, "returned a dict without the key 'reward': {'score': 1.0}"),
    ],
)
def test_a_score_that_is_no_finite_number_stops_the_run_and_names_the_sample(bad, reason):
    with pytest.raises(RLError) as raised:
        pipeline((choice(), by_answer(a=1.0, b=bad, c=1.0))).score(SAMPLES)
    assert str(raised.value) == f"rows.jsonl:2: reward 'mine' (rl-mine) {reason}\n{THE_SAMPLE}    fix it, or {INSTEAD}"


def test_a_reward_that_raises_stops_the_run_and_names_sample_and_line():
    reward = by_answer(a=1.0, b=KeyError("gold"), c=1.0)
    with pytest.raises(RLError) as raised:
        pipeline((choice(), reward)).score(SAMPLES)
    first, *rest = str(raised.value).split("\n")
    assert first.startswith("rows.jsonl:2: reward 'mine' (rl-mine) raised KeyError: 'gold' (")
    assert f"{__file__}:" in first
    assert rest == [THE_SAMPLE.rstrip("\n"), f"    fix it, or {INSTEAD}"]
    assert reward.asked == [3, 1, 1], "the search ends at the first that fails"


def test_scores_of_another_number_stop_the_run():
    with pytest.raises(RLError) as raised:
        pipeline((choice(), fixed(1.0))).score(SAMPLES)
    assert str(raised.value) == (
        "reward 'mine' (rl-mine) returned 1 scores for 3 samples, but scores each of the 3 samples alone\n"
        "    fix how it scores several at once"
    )


def test_what_a_reward_explains_itself_is_passed_on():
    with pytest.raises(RLError) as raised:
        pipeline((choice(), by_answer(a=RLError("reward 'mine' has no key\n    set API_KEY")))).score(SAMPLES[:1])
    assert str(raised.value) == f"reward 'mine' has no key\n    set API_KEY\n    or {INSTEAD}"


@pytest.mark.parametrize("on_error", ["error", "zero", "drop"])
def test_an_error_about_the_data_stops_the_run_whatever_the_policy(on_error):
    reward = by_answer(a=DataError("rows.jsonl:1: no answer"))
    with pytest.raises(DataError, match=r"^rows.jsonl:1: no answer$"):
        pipeline((choice(on_error=on_error), reward)).score(SAMPLES[:1])


@pytest.mark.parametrize("bad", [math.nan, KeyError("gold"), SystemExit(3), RLError("explained")])
@pytest.mark.parametrize("on_error", ["zero", "drop"])
def test_only_the_sample_that_fails_gets_the_policy(bad, on_error, caplog):
    bad_reward = by_answer(a=1.0, b=bad, c=3.0) if not isinstance(bad, SystemExit) else exiting(bad)
    scores = pipeline((choice(on_error=on_error), bad_reward), (choice("two"), fixed(*[10.0] * 3))).score(SAMPLES)
    instead = 10.0 if on_error == "zero" else math.nan
    assert scores.rewards.tolist() == pytest.approx([11.0, instead, 13.0], nan_ok=True)
    assert scores.counts == {
        "reward_failures": 1.0,
        "reward_timeouts": 0.0,
        "reward_dropped": float(on_error == "drop"),
    }
    assert scores.metrics["rollout/mine/reward_mean"] == pytest.approx(4 / 3 if on_error == "zero" else 2.0)
    (record,) = caplog.records
    what = "scored 0" if on_error == "zero" else "left out"
    assert record.getMessage().startswith(
        f"reward 'mine' (rl-mine) failed for 1 of 3 samples, which are {what}; the first: "
    )


def exiting(error):
    def function(samples):
        if any(s.completion == "b" for s in samples):
            raise error
        return [{"a": 1.0, "c": 3.0}[s.completion] for s in samples]

    return Mine(function)


def test_a_list_of_another_length_is_scored_one_by_one_under_a_policy(caplog):
    reward = Mine(lambda samples: [1.0])
    scores = pipeline((choice(on_error="drop"), reward)).score(SAMPLES)
    assert scores.rewards.tolist() == [1.0, 1.0, 1.0]
    assert scores.counts == {"reward_failures": 0.0, "reward_timeouts": 0.0, "reward_dropped": 0.0}
    assert [r.getMessage() for r in caplog.records] == [
        "reward 'mine' (rl-mine) returned 1 scores for 3 samples, but scores each of the 3 samples alone; "
        "which takes longer"
    ]


class MayHang(RewardConfig):
    pass


class CannotHang(RewardConfig):
    @property
    def cannot_hang(self):
        return True


class OwnDeadline(CannotHang):
    timeout_s: float = 5.0


@pytest.mark.parametrize(
    ("model", "given", "deadline"),
    [
        (MayHang, {}, 1800.0),
        (MayHang, {"timeout_s": None}, None),
        (CannotHang, {}, None),
        (CannotHang, {"timeout_s": 2}, 2.0),
        (OwnDeadline, {}, None),
        (OwnDeadline, {"timeout_s": 2}, None),
    ],
)
def test_rewards_that_may_hang_get_a_process_with_a_deadline(model, given, deadline):
    config = model(name="mine", **given)
    assert config.process_timeout_s == deadline
    again = model(**config.model_dump())  # as a resume reads what the run wrote
    assert again.process_timeout_s == deadline
