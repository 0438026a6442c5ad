"""A generator as a stream of single requests, each with its own sampling and one completion.

A batch call, :meth:`rl_core.contracts.generator.Generator.generate`, is a helper on top: ``rl_rollout.batch_call``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

Want = Literal["prompt_logprobs", "top_logprobs", "routing"]
TOP_LOGPROBS = 20


@dataclass(frozen=True)
class Sampling:
    """How one completion is sampled, as in :class:`rl_core.contracts.generator.SamplingParams`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_new_tokens: int = 64


@dataclass(frozen=True)
class GenerationRequest:
    """Asks for one completion, which depends on tokens, media, sampling, seed, sample and weights, up to rounding.

    Attributes:
        id: unique among a generator's requests in flight.
        tokens: int32 [P], the prompt, P > 0. Samples of one seed in one ``submit`` may be read as one prompt.
        seed: its lowest 64 bits are used.
        sample: which of the independent completions under this seed, 0 or more.
        media: what placeholders in ``tokens`` stand for, in their order.
        session: the same for requests of one conversation, which share a prefix.
        priority: a higher one starts before waiting requests of a lower one; equal ones start in their order.
        want: further columns of the completion, of :attr:`StreamingGenerator.wants`.
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
    """The answer to request ``id``: T tokens; T > 0, but after an abort.

    Attributes:
        tokens: int32 [T], what ended it included.
        logprobs: float32 [T], at the request's temperature (0: at 1) over the full vocabulary, whatever is excluded.
        weights_version: int32 [T], of the weights that sampled each token.
        finish: by a stop token or string, by ``max_new_tokens``, or by ``abort``.
        columns: what was wanted, at the same temperature: ``prompt_logprobs`` float32 [P], 0 for the first token;
            ``top_tokens`` int32 and ``top_logprobs`` float32 [T, K], most likely first, K = ``TOP_LOGPROBS`` or the
            vocabulary; ``routing`` int16 [P + T - 1, layers, experts per token]. They may lack after an abort.
    """

    id: str
    tokens: np.ndarray
    logprobs: np.ndarray
    weights_version: np.ndarray
    finish: Literal["stop", "length", "abort"]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


@runtime_checkable
class StreamingGenerator(Protocol):
    """A :class:`rl_core.contracts.generator.Generator` with these verbs, which any thread may call after ``load``.

    ``update_weights`` then comes between two decoding steps, paused or not: requests in flight go on with the new
    weights. ``sleep`` raises RuntimeError while requests are in flight: abort them first.
    """

    wants: frozenset[Want]  # of the loaded model

    def submit(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Completion]:
        """Queue requests and return at once; iterate over the result, once and in any event loop.

        Completions come as they finish, each once; of one step in the order in which they started. An error of the
        engine is raised by the iteration.

        Raises:
            ValueError: a request that cannot be answered, named by its id; then none is queued.
        """
        ...

    def abort(self, ids: Collection[str] | None = None) -> None:
        """End requests (None: all) between two steps. Each comes as a completion with the tokens it has."""
        ...

    def pause(self) -> None:
        """Return when no step is running; none begins until ``resume``. Requests keep their place."""
        ...

    def resume(self) -> None:
        """Undo ``pause``."""
        ...
