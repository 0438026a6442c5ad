"""Conformance rules for rewards (:mod:`rl_core.contracts.reward`)."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from rl_core.contracts.reward import Reward, Sample

from rl_plugin_kit.rows import answers
from rl_plugin_kit.suites.base import ComponentConformance


class RewardConformance(ComponentConformance):
    """Attributes:
    samples: what is scored; by default completions of ``1+1=``: right, wrong, empty, cut off, in other alphabets.
    tolerance: by how much a sample's score may change with its neighbours (rounding of a model's batches).
    repeatable: False for a reward that draws random numbers or asks a service that does.
    """

    kind = "reward"
    contracts = (Reward,)
    optional = ("close",)
    samples: ClassVar[Sequence[Sample]] = tuple(answers())
    tolerance: ClassVar[float] = 1e-5
    repeatable: ClassVar[bool] = True

    def test_every_sample_gets_one_finite_score(self) -> None:
        with self._built() as reward:
            scores = score(reward, self.samples)
        self.expect(
            len(scores) == len(self.samples), f"score returned {len(scores)} scores for {len(self.samples)} samples"
        )
        for index, one in enumerate(scores):
            parts = one if isinstance(one, dict) else {"reward": one}
            self.expect("reward" in parts, f"the score of sample {index} is a dict without the key 'reward': {one}")
            for name, value in parts.items():
                self.expect(
                    _is_number(value),
                    f"{name} of sample {index} ({self.samples[index].completion!r}) is {value!r}, not a finite number",
                )

    def test_no_samples_have_no_scores(self) -> None:
        with self._built() as reward:
            scores = score(reward, [])
        self.expect(len(scores) == 0, f"score([]) returned {len(scores)} scores")

    def test_scores_belong_to_their_samples(self) -> None:
        if not self.repeatable:
            return
        with self._built() as reward:
            straight = values(reward, self.samples)
            turned = values(reward, self.samples[::-1])[::-1]
            alone = values(reward, self.samples[:1])
        if len(straight) != len(self.samples):
            return  # the rule about the number of scores says so
        for index, (a, b) in enumerate(zip(straight, turned, strict=True)):
            self.expect(
                self._same(a, b),
                f"sample {index} scores {a:g}, and {b:g} in reverse order; the i-th score is that of the i-th sample",
            )
        for a, b in zip(straight[:1], alone, strict=False):
            self.expect(
                self._same(a, b),
                f"sample 0 scores {a:g} among others and {b:g} alone; after a failure samples are scored one by one",
            )

    def test_it_can_be_built_again_after_it_was_closed(self) -> None:
        found = []
        for _ in range(2):
            with self._built() as reward:
                found.append(values(reward, self.samples))
        if self.repeatable:
            self.expect(
                str(found[0]) == str(found[1]), f"a second one in the same process scores {found[1]}, not {found[0]}"
            )

    def _same(self, a: float, b: float) -> bool:
        return a == b or math.isclose(a, b, rel_tol=self.tolerance, abs_tol=self.tolerance) or math.isnan(a)

    @contextmanager
    def _built(self) -> Iterator[Reward]:
        reward = self.build()
        try:
            yield reward
        finally:
            if hasattr(reward, "close"):
                reward.close()


def score(reward: Reward, samples: Sequence[Sample]) -> Sequence[Any]:
    """Scores, awaited where ``score`` is a coroutine."""
    scores: Any = reward.score(samples)

    async def wait() -> Sequence[Any]:
        return await scores

    return asyncio.run(wait()) if inspect.isawaitable(scores) else scores


def values(reward: Reward, samples: Sequence[Sample]) -> list[float]:
    """The rewards alone; nan where there is none."""
    return [float(one.get("reward", math.nan) if isinstance(one, dict) else one) for one in score(reward, samples)]


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and not isinstance(value, str)
    except (TypeError, ValueError):
        return False
