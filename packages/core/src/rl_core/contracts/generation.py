"""A generator as a stream of single requests, each with its own sampling and one completion.

A batch call (:meth:`rl_core.contracts.generator.Generator.generate`) is a helper on top: ``rl_rollout.batch_call``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from rl_core.contracts.backend import WeightBucket

Want = Literal["prompt_logprobs", "top_logprobs", "routing"]
Finish = Literal["stop", "length", "abort"]

TOP_LOGPROBS = 20
"""Tokens per position of ``top_logprobs``; fewer only where the vocabulary is smaller."""


@dataclass(frozen=True)
class Sampling:
    """How one completion is sampled; the fields are those of :class:`rl_core.contracts.generator.SamplingParams`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_new_tokens: int = 64


@dataclass(frozen=True)
class GenerationRequest:
    """One completion of one prompt. It depends on tokens, media, sampling, seed, sample and weights only, up to
    rounding: not on its time, nor on what else is sampled.

    Attributes:
        id: unique among a generator's requests in flight.
        tokens: int32 [P], the prompt, at least one token. Requests of one ``submit`` that differ in ``sample`` alone
            may be read as one prompt.
        seed: its lowest 64 bits are used.
        sample: 0 or more: which of the independent completions under this seed.
        media: what placeholders in ``tokens`` stand for, in their order; empty for text.
        session: requests of one conversation share it, so that they can meet the same prefix cache; empty for none.
        priority: a request of higher priority starts before waiting ones of lower; equal ones start in their order.
        want: further columns of the completion; :attr:`StreamingGenerator.wants` has those that can be had.
    """

    id: str
    tokens: np.ndarray
    sampling: Sampling
    seed: int = 0
    sample: int = 0
    media: tuple[Any, ...] = ()
    session: str = ""
    priority: int = 0
    want: frozenset[Want] = frozenset()


@dataclass(frozen=True)
class Completion:
    """The answer to a request, T tokens; at least one, except after an abort.

    Attributes:
        id: of the request.
        tokens: int32 [T], a stop token or the tokens of a stop string included.
        logprobs: float32 [T], at the request's temperature over the full vocabulary, whatever sampling excludes; at
            temperature 0 those at temperature 1.
        weights_version: int32 [T], of the weights that sampled each token.
        finish: ``stop``: a stop token or string; ``length``: ``max_new_tokens``; ``abort``: ended by ``abort``.
        columns: what ``want`` asked for, at the same temperature: ``prompt_logprobs`` float32 [P], 0 for the first
            token; ``top_tokens`` int32 and ``top_logprobs`` float32 [T, K], most likely first, K = ``TOP_LOGPROBS``;
            ``routing`` int16 [P + T - 1, layers, experts per token]. After an abort they may lack.
    """

    id: str
    tokens: np.ndarray
    logprobs: np.ndarray
    weights_version: np.ndarray
    finish: Finish
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


@runtime_checkable
class StreamingGenerator(Protocol):
    """What a generator has besides ``setup``, ``load`` and ``close`` of :class:`rl_core.contracts.generator.Generator`.

    All but the iteration of results may be called from any thread, at any time after ``load``.
    """

    @property
    def wants(self) -> frozenset[Want]:
        """What ``want`` may ask for, of the loaded model."""
        ...

    def submit(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Completion]:
        """Queue requests and return at once; iterate over the result for their completions, once, in any event loop.

        Completions come as they finish; those of one decoding step in the order of ``requests``. An error of the
        engine is raised by the iteration. Closing the iterator (``aclose``) aborts what is unfinished.

        Raises:
            ValueError: a request that cannot be answered, named by its id. Then none is queued.
        """
        ...

    def abort(self, ids: Collection[str] | None = None) -> None:
        """End requests (None: all) between two steps. What they have comes as a completion with ``finish="abort"``;
        an id that is not in flight is ignored."""
        ...

    def update_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """As :meth:`rl_core.contracts.generator.Generator.update_weights`, between two decoding steps: requests in
        flight go on, and their next tokens carry ``version``. Works while paused."""
        ...

    def pause(self) -> None:
        """Return when no step is running; none begins until ``resume``. Requests keep their place."""
        ...

    def resume(self) -> None:
        """Undo ``pause``."""
        ...

    def sleep(self) -> None:
        """Free device memory. RuntimeError with requests in flight: abort them first."""
        ...

    def wake(self) -> None:
        """Undo ``sleep``."""
        ...
