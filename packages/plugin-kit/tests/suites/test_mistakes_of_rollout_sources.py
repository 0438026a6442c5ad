"""Mistakes in rollout sources that their suite finds."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from rl_core.errors import DataError
from rl_plugin_kit import suites


class Sound:
    """What the rules are about, and nothing else."""

    drops = np.nan
    counts = 1.0

    def prepare(self, job):
        self.job = job

    @contextmanager
    def encoding(self, *, position, steps):
        yield
        for row in self.job.rows:
            if "prompt" not in row:
                raise DataError(f"{row['__where__']}: there is no prompt")

    def score(self, samples):
        rewards = self.job.stage.rewards
        scored = [[self.job.build(choice).score([sample])[0] for choice in rewards] for sample in samples]
        weights = [choice.config.weight for choice in rewards]
        totals = np.array(scored) @ weights
        lost = np.isnan(totals)
        drops = rewards[0].config.on_error == "drop"
        totals[lost] = self.drops if drops else 0.0
        return totals.astype(np.float32), {"reward_failures": self.counts * lost.sum()}

    def close(self):
        pass


class Unweighted(Sound):
    def score(self, samples):
        return super().score(samples)[0] / 3, {}


class Reversed(Sound):
    def score(self, samples):
        scores, counts = super().score(samples)
        return scores[::-1], counts


class Double(Sound):
    def score(self, samples):
        scores, counts = super().score(samples)
        return scores.astype(np.float64), counts


class Zeroes(Sound):
    drops = 0.0


class Silent(Sound):
    counts = 0.0


class Blind(Sound):
    @contextmanager
    def encoding(self, *, position, steps):
        yield


class Nameless(Sound):
    @contextmanager
    def encoding(self, *, position, steps):
        yield
        if any("prompt" not in row for row in self.job.rows):
            raise DataError("a row has no prompt")


RULES = {
    "test_scores_are_the_weighted_rewards_in_the_order_of_the_samples",
    "test_a_sample_that_a_reward_drops_is_counted_and_has_no_score",
    "test_rows_that_fit_are_encoded_while_workers_start",
    "test_a_row_without_a_prompt_is_named_before_the_first_step",
}


def broken(source):
    """The rules that ``source`` breaks."""
    suite = type("TestMine", (suites.RolloutConformance,), {"component": "mine", "build": lambda self: source()})()
    found = set()
    for rule in RULES:
        try:
            getattr(suite, rule)()
        except AssertionError:
            found.add(rule)
    return found


def test_a_sound_source_breaks_no_rule():
    assert broken(Sound) == set()


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (Unweighted, "weighted"),
        (Reversed, "weighted"),
        (Double, "weighted"),
        (Zeroes, "drops"),
        (Silent, "drops"),
        (Blind, "prompt"),
        (Nameless, "prompt"),
    ],
)
def test_a_mistake_breaks_the_rule_about_it(source, word):
    assert any(word in rule for rule in broken(source))
