"""Requests and completions as a few arrays: what travels between processes in place of thousands of small objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rl_core.contracts.generation import Completion, GenerationRequest, Sampling, Want

_FINISH: tuple[Literal["stop", "length", "abort"], ...] = ("stop", "length", "abort")


@dataclass(frozen=True)
class PackedRequests:
    """N requests over P distinct prompts.

    Attributes:
        ids: int64 [N]; a replica knows requests by these numbers.
        tokens: int32, the prompts one after the other; prompt p begins at ``offsets[p]``, int64 [P + 1].
        prompt, seed, sample, priority: uint64 or int64 [N]; ``prompt`` counts prompts.
        sampling, want: the distinct ones; ``sampling_of`` and ``want_of``, int64 [N], count them.
        media, session: of each request, where any has some.
    """

    ids: np.ndarray
    tokens: np.ndarray
    offsets: np.ndarray
    prompt: np.ndarray
    seed: np.ndarray
    sample: np.ndarray
    priority: np.ndarray
    sampling: tuple[Sampling, ...]
    sampling_of: np.ndarray
    want: tuple[frozenset[Want], ...]
    want_of: np.ndarray
    media: tuple[tuple[Any, ...], ...] = ()
    session: tuple[str, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[int], requests: Sequence[GenerationRequest]) -> PackedRequests:
        """Requests that share one array of tokens share a prompt."""
        prompts: dict[int, int] = {}
        arrays: list[np.ndarray] = []
        prompt: list[int] = []
        samplings: dict[Sampling, int] = {}
        wants: dict[frozenset[Want], int] = {}
        for request in requests:
            place = prompts.get(id(request.tokens))
            if place is None:
                place = prompts[id(request.tokens)] = len(arrays)
                arrays.append(request.tokens)
            prompt.append(place)
        lengths = [len(a) for a in arrays]
        return cls(
            ids=np.array(ids, np.int64),
            tokens=np.concatenate(arrays).astype(np.int32, copy=False),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
            prompt=np.array(prompt, np.int64),
            seed=np.array([r.seed % 2**64 for r in requests], np.uint64),
            sample=np.array([r.sample for r in requests], np.int64),
            priority=np.array([r.priority for r in requests], np.int64),
            sampling_of=np.array([samplings.setdefault(r.sampling, len(samplings)) for r in requests], np.int64),
            sampling=tuple(samplings),
            want_of=np.array([wants.setdefault(r.want, len(wants)) for r in requests], np.int64),
            want=tuple(wants),
            media=tuple(r.media for r in requests) if any(r.media for r in requests) else (),
            session=tuple(r.session for r in requests) if any(r.session for r in requests) else (),
        )

    def requests(self) -> list[GenerationRequest]:
        """Their ids are the numbers as text."""
        prompts = [self.tokens[a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]
        rows = zip(
            self.ids.tolist(),
            self.prompt.tolist(),
            self.seed.tolist(),
            self.sample.tolist(),
            self.priority.tolist(),
            self.sampling_of.tolist(),
            self.want_of.tolist(),
            self.media or ((),) * len(self.ids),
            self.session or ("",) * len(self.ids),
            strict=True,
        )
        return [
            GenerationRequest(
                id=str(number),
                tokens=prompts[prompt],
                sampling=self.sampling[sampling],
                seed=seed,
                sample=sample,
                media=media,
                session=session,
                priority=priority,
                want=self.want[want],
            )
            for number, prompt, seed, sample, priority, sampling, want, media, session in rows
        ]


@dataclass(frozen=True)
class PackedCompletions:
    """Completions of N requests; T tokens in all, arrays as in :class:`rl_core.contracts.generation.Completion`.

    Attributes:
        ids: int64 [N].
        offsets: int64 [N + 1], where each one's tokens begin.
        finish: int8 [N].
        columns: of each, where any has some.
    """

    ids: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    weights_version: np.ndarray
    finish: np.ndarray
    columns: tuple[dict[str, np.ndarray], ...] = ()

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> PackedCompletions:
        """The ids must be numbers, as those of :meth:`PackedRequests.requests`."""
        lengths = [len(c.tokens) for c in completions]
        columns = tuple(dict(c.columns) for c in completions) if any(c.columns for c in completions) else ()
        return cls(
            ids=np.array([int(c.id) for c in completions], np.int64),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
            tokens=_joined([c.tokens for c in completions], np.int32),
            logprobs=_joined([c.logprobs for c in completions], np.float32),
            weights_version=_joined([c.weights_version for c in completions], np.int32),
            finish=np.array([_FINISH.index(c.finish) for c in completions], np.int8),
            columns=columns,
        )

    def completions(self, name: Callable[[int, int], str | None]) -> list[Completion]:
        """Those that somebody waits for.

        Args:
            name: says for a request's number and the tokens of its completion the id that it had before; None where
                nobody waits for it.
        """
        found = []
        bounds = self.offsets.tolist()
        finish = self.finish.tolist()
        for place, number in enumerate(self.ids.tolist()):
            a, b = bounds[place], bounds[place + 1]
            one = name(number, b - a)
            if one is not None:
                found.append(
                    Completion(
                        one,
                        self.tokens[a:b],
                        self.logprobs[a:b],
                        self.weights_version[a:b],
                        _FINISH[finish[place]],
                        self.columns[place] if self.columns else {},
                    )
                )
        return found


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
