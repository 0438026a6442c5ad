"""Each promise of a stream of single requests, broken once: only its rule fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rl_generation_hf.generator import HfGenerator
from rl_plugin_kit.outcome import outcomes
from rl_plugin_kit.suites import GeneratorConformance


class OneSampling(HfGenerator):
    def submit(self, requests):
        first = requests[0].sampling
        return super().submit(
            [replace(r, sampling=replace(first, max_new_tokens=r.sampling.max_new_tokens)) for r in requests]
        )


class ForgetsAborted(HfGenerator):
    def submit(self, requests):
        return Changed(
            super().submit(requests),
            lambda c: replace(c, tokens=c.tokens[:0]) if c.id.startswith("long") else c,
        )


class OldVersions(HfGenerator):
    def submit(self, requests):
        return Changed(
            super().submit(requests),
            lambda c: replace(c, weights_version=c.weights_version * 0 + 7),
        )


class LoosePromptLogprobs(HfGenerator):
    def submit(self, requests):
        def changed(completion):
            columns = {name: column / (1 + (name == "prompt_logprobs")) for name, column in completion.columns.items()}
            return replace(completion, columns=columns)

        return Changed(super().submit(requests), changed)


class TakesEverything(HfGenerator):
    def submit(self, requests):
        return super().submit([replace(r, want=r.want & self.wants) for r in requests])


class Changed:
    """A stream whose completions are changed."""

    def __init__(self, stream, change):
        self.stream, self.change = stream, change

    def __aiter__(self):
        return self

    async def __anext__(self):
        return self.change(await anext(self.stream))


class BatchAlone:
    """A generator without a stream."""

    def __init__(self, config):
        inner = HfGenerator(config)
        for name in ("setup", "load", "generate", "update_weights", "sleep", "wake", "close"):
            setattr(self, name, getattr(inner, name))


def findings(kind):
    class Suite(GeneratorConformance):
        component = "hf"

        def build(self):
            return kind(self.config())

    # Those that start processes say nothing about streams.
    left_out = (
        "test_a_ray_worker_receives_its_config_and_builds_it",
        "test_a_tiny_run_continues_exactly_where_it_stopped",
    )
    return {one.rule: one.detail for one in outcomes(Suite, without=left_out) if one.status == "failed"}


MISTAKES = {
    "one sampling for all": (
        OneSampling,
        "each request of a stream has its own sampling",
        "generator 'hf': a greedy request in a stream with others is completed with",
    ),
    "an abort that forgets": (
        ForgetsAborted,
        "an aborted request keeps the tokens it has",
        "generator 'hf': an aborted request comes with [] and finish",
    ),
    "versions of before": (
        OldVersions,
        "a paused stream goes on with the new weights",
        "generator 'hf': requests that waited for update_weights(version=8) have versions [7]",
    ),
    "other log-probs of the prompt": (
        LoosePromptLogprobs,
        "requests get what they want or are refused",
        "generator 'hf': prompt_logprobs differ from the model's at the request's temperature by up to",
    ),
    "anything may be wanted": (
        TakesEverything,
        "requests get what they want or are refused",
        "generator 'hf': submit accepts a request that wants routing, which is not in wants",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_stream(mistake):
    kind, rule, message = MISTAKES[mistake]
    found = findings(kind)
    assert list(found) == [rule]
    assert found[rule].startswith(message)


@pytest.mark.parametrize("kind", [HfGenerator, BatchAlone])
def test_a_generator_need_not_have_a_stream_and_a_sound_one_keeps_the_rules(kind):
    assert findings(kind) == {}
