"""Single requests for a generator that has batch calls alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.generation import Completion, GenerationRequest, Sampling
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import RLError

if TYPE_CHECKING:
    from rl_core.contracts.generator import Generator

Prompt = tuple[int, int]
"""Tokens (by identity) and seed, of which a batch call samples several completions."""


def complete_as_batches(generator: Generator, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """The requests' completions, by one batch call for each sampling and number of samples.

    Raises:
        ValueError: a request with media or wants, which a batch call has not.
        RLError: the generator answered something else than what it was asked.
    """
    for request in requests:
        if request.want or request.media:
            raise ValueError(f"request {request.id}: this generator has batch calls alone, without wants and media")
    by_sampling: dict[Sampling, dict[Prompt, list[GenerationRequest]]] = {}
    for request in requests:
        prompts = by_sampling.setdefault(request.sampling, {})
        prompts.setdefault((id(request.tokens), request.seed), []).append(request)
    found: list[Completion] = []
    for sampling, prompts in by_sampling.items():
        calls: dict[int, list[list[GenerationRequest]]] = {}
        for asked in prompts.values():
            calls.setdefault(1 + max(one.sample for one in asked), []).append(asked)
        for n, groups in calls.items():
            found += _one_call(generator, groups, sampling, n)
    return found


def _one_call(
    generator: Generator, groups: Sequence[Sequence[GenerationRequest]], sampling: Sampling, n: int
) -> list[Completion]:
    """``n`` completions of each group's prompt, of which those asked for are returned."""
    prompts = SequenceBatch.from_lists(
        [group[0].tokens for group in groups],
        sequence_columns={"seed": np.array([group[0].seed % 2**64 for group in groups], np.uint64)},
    )
    answer = generator.generate(prompts, SamplingParams(n=n, **vars(sampling)))
    columns = answer.sequence_columns
    answered = zip(columns["request"].tolist(), columns["sample"].tolist(), strict=True)
    place = {pair: row for row, pair in enumerate(answered)}
    if len(answer) != len(place) or place.keys() != {(r, s) for r in range(len(groups)) for s in range(n)}:
        raise RLError(
            f"the generator was asked for {n} samples of each of {len(groups)} requests and answered "
            f"{len(answer)} sequences, of requests {np.unique(columns['request']).tolist()}; the plugin is at fault"
        )
    return [_completion(answer, place[index, one.sample], one) for index, group in enumerate(groups) for one in group]


def _completion(answer: SequenceBatch, row: int, request: GenerationRequest) -> Completion:
    where, known = answer.sequence(row), int(answer.sequence_columns["prompt_length"][row])
    columns = answer.token_columns
    return Completion(
        id=request.id,
        tokens=answer.tokens[where][known:],
        logprobs=columns["sampled_logprobs"][where][known:],
        weights_version=columns["weights_version"][where][known:],
        finish="length" if answer.sequence_columns["truncated"][row] else "stop",
    )
