"""Conformance rules for generators that answer single requests (:mod:`rl_core.contracts.generation`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, get_args

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.generation import (
    TOP_LOGPROBS,
    Completion,
    GenerationRequest,
    Sampling,
    StreamingGenerator,
    Want,
)
from rl_core.contracts.generator import Generator, SamplingParams

from rl_plugin_kit.local_model import lone_worker
from rl_plugin_kit.reference import TinyShape, Weights, log_probs, to_bucket
from rl_plugin_kit.suites.base import ComponentConformance

PROMPTS = ((3, 4, 5), (6, 7), (3, 4, 5), (8, 9, 10, 11, 12))
SEEDS = (11, 2**62, 13, 5)
VERSION = 7
WARM = Sampling(temperature=1.4, max_new_tokens=6)
LONG = 24
PATIENCE_S = 120


class StreamConformance(ComponentConformance):
    """Rules that hold where a generator is a :class:`~rl_core.contracts.generation.StreamingGenerator`; it need not.

    Attributes:
        shape: the model; a generator that cannot build it names one it can (``qwen2`` or ``llama``).
        tolerance: largest difference of a log-probability from numpy in float64; a generator that computes in 16 bits
            needs a larger one.
    """

    shape: ClassVar[TinyShape] = TinyShape()
    tolerance: ClassVar[float] = 1e-4

    def test_each_request_of_a_stream_has_its_own_sampling(self) -> None:
        with self._loaded() as generator:
            if not isinstance(generator, StreamingGenerator):
                return
            kinds = {"warm": WARM, "greedy": replace(WARM, temperature=0.0, max_new_tokens=4)}
            kinds["narrow"] = replace(WARM, top_k=2, max_new_tokens=5)
            expected = {name: _batch(generator, sampling) for name, sampling in kinds.items()}
            asked = [_request(i, kind, sampling) for i in range(len(PROMPTS)) for kind, sampling in kinds.items()]
            found = self._complete(generator, asked)
        weights = self.shape.weights(1)
        for request in asked:
            kind, index = request.id.split()
            completion, length = found[request.id], request.sampling.max_new_tokens
            self.expect(
                completion.tokens.tolist() == expected[kind][int(index)],
                f"a {kind} request in a stream with others is completed with {completion.tokens.tolist()}, and "
                f"generate gives {expected[kind][int(index)]}",
            )
            self.expect(
                completion.finish == "length" and len(completion.tokens) == length,
                f"a request without stop tokens has {len(completion.tokens)} tokens and finish "
                f"{completion.finish!r}; max_new_tokens is {length}",
            )
            self._check_arrays(completion)
            self._check_stream_log_probs(request, completion, weights)

    def test_an_aborted_request_keeps_the_tokens_it_has(self) -> None:
        with self._loaded() as generator:
            if not isinstance(generator, StreamingGenerator):
                return
            long = replace(WARM, max_new_tokens=LONG)
            whole = _batch(generator, long)
            # They start in this order, so that the first has a token when the second is done.
            stream = generator.submit([_request(0, "long", long), _request(1, "short")])
            found = self._gathered(stream, after_first=lambda: generator.abort(["long 0", "unknown"]))
        self.expect(sorted(found) == ["long 0", "short 1"], f"after abort the stream gives {sorted(found)}, not both")
        ended, other = found["long 0"], found["short 1"]
        tokens = ended.tokens.tolist()
        self.expect(
            tokens
            and tokens == whole[0][: len(tokens)]
            and ended.finish == ("abort" if len(tokens) < LONG else "length"),
            f"an aborted request comes with {tokens} and finish {ended.finish!r}; it has the beginning of {whole[0]}",
        )
        self.expect(
            other.tokens.tolist() == whole[1][: WARM.max_new_tokens] and other.finish == "length",
            f"with an aborted request another gets {other.tokens.tolist()}",
        )

    def test_a_paused_stream_goes_on_with_the_new_weights(self) -> None:
        weights = self.shape.weights(2)
        with self._loaded() as generator:
            if not isinstance(generator, StreamingGenerator):
                return
            generator.pause()
            asked = [_request(index, "paused") for index in range(len(PROMPTS))]
            stream = generator.submit(asked)
            generator.update_weights([to_bucket(weights)], VERSION + 1)
            generator.resume()
            found = self._gathered(stream)
        versions = sorted({int(v) for completion in found.values() for v in completion.weights_version})
        self.expect(
            versions == [VERSION + 1], f"requests that waited for update_weights(version=8) have versions {versions}"
        )
        for request in asked:
            self._check_stream_log_probs(request, found[request.id], weights)

    def test_requests_get_what_they_want_or_are_refused(self) -> None:
        with self._loaded() as generator:
            if not isinstance(generator, StreamingGenerator):
                return
            wants = generator.wants
            for want in get_args(Want):
                request = replace(_request(3, "wants"), want=frozenset([want]))
                if want in wants:
                    self._check_column(request, want, self._complete(generator, [request])[request.id])
                    continue
                try:
                    generator.submit([request])
                except ValueError as error:
                    self.expect(
                        request.id in str(error) and want in str(error),
                        f"submit refuses {want} without naming it and the request: {error}",
                    )
                else:
                    self.expect(False, f"submit accepts a request that wants {want}, which is not in wants")

    @contextmanager
    def _loaded(self) -> Iterator[Generator]:
        """A generator with the weights of seed 1, version 7."""
        generator = self.build()
        generator.setup(lone_worker())
        try:
            generator.load(self.shape.spec(), None)
            generator.update_weights([to_bucket(self.shape.weights(1))], VERSION)
            yield generator
        finally:
            generator.close()

    def _complete(self, generator: StreamingGenerator, requests: Sequence[GenerationRequest]) -> dict[str, Completion]:
        found = self._gathered(generator.submit(requests))
        self.expect(sorted(found) == sorted(request.id for request in requests), f"the stream gives {sorted(found)}")
        return found

    def _gathered(
        self, stream: AsyncIterator[Completion], after_first: Callable[[], None] = lambda: None
    ) -> dict[str, Completion]:
        """All of a stream; ``after_first`` is called in between."""

        async def gather() -> dict[str, Completion]:
            found: dict[str, Completion] = {}
            async for completion in stream:
                self.expect(completion.id not in found, f"the stream gives request {completion.id!r} twice")
                found[completion.id] = completion
                if len(found) == 1:
                    after_first()
            return found

        return asyncio.run(asyncio.wait_for(gather(), PATIENCE_S))

    def _check_arrays(self, completion: Completion) -> None:
        for name, dtype in (("tokens", np.int32), ("logprobs", np.float32), ("weights_version", np.int32)):
            found = getattr(completion, name)
            self.expect(
                found.dtype == dtype and found.shape == completion.tokens.shape,
                f"{name} of a completion are {found.dtype} {list(found.shape)}, expected {np.dtype(dtype)} "
                f"{list(completion.tokens.shape)}",
            )

    def _check_stream_log_probs(self, request: GenerationRequest, completion: Completion, weights: Weights) -> None:
        rows = self._distributions(request, completion, weights)[len(request.tokens) - 1 : -1]
        expected = rows[np.arange(len(rows)), completion.tokens]
        self._check_close(completion.logprobs, expected, f"logprobs of request {request.id!r}")

    def _check_column(self, request: GenerationRequest, want: Want, completion: Completion) -> None:
        rows = self._distributions(request, completion, self.shape.weights(1))
        start, columns = len(request.tokens), completion.columns
        if want == "prompt_logprobs":
            expected = np.zeros(start)
            expected[1:] = rows[np.arange(start - 1), request.tokens[1:]]
            self._check_close(columns.get(want), expected, want)
        elif want == "top_logprobs":
            order = np.argsort(-rows[start - 1 : -1], axis=-1)[:, :TOP_LOGPROBS]
            self._check_close(columns.get(want), np.take_along_axis(rows[start - 1 : -1], order, -1), want)
            self.expect(
                columns["top_tokens"].shape == order.shape, f"top_tokens are {list(columns['top_tokens'].shape)}"
            )
        else:
            found = columns.get(want, np.zeros(0))
            self.expect(found.ndim == 3 and len(found) == len(rows) - 1, f"{want} is {list(found.shape)}")

    def _distributions(self, request: GenerationRequest, completion: Completion, weights: Weights) -> np.ndarray:
        tokens = np.concatenate([request.tokens, completion.tokens])
        return log_probs(self.shape, weights, tokens, request.sampling.temperature or 1.0)

    def _check_close(self, found: np.ndarray | None, expected: np.ndarray, what: str) -> None:
        if found is None or found.shape != expected.shape:
            shape = "missing" if found is None else list(found.shape)
            raise AssertionError(f"{self.label}: {what}: {shape}, expected {list(expected.shape)}")
        gap = np.abs(found - expected).max()
        self.expect(
            gap <= self.tolerance,
            f"{what} differ from the model's at the request's temperature by up to {gap:.3g} "
            f"(allowed: {self.tolerance:g})",
        )


def _request(index: int, name: str, sampling: Sampling = WARM) -> GenerationRequest:
    tokens = np.array(PROMPTS[index], np.int32)
    tokens.flags.writeable = False  # as it comes out of shared memory
    return GenerationRequest(f"{name} {index}", tokens, sampling, seed=SEEDS[index])


def _batch(generator: Generator, sampling: Sampling) -> list[list[int]]:
    """Completions that the batch call gives the prompts."""
    seeds = {"seed": np.array(SEEDS, np.int64)}
    params = SamplingParams(
        max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_k=sampling.top_k
    )
    batch = generator.generate(SequenceBatch.from_lists(list(PROMPTS), sequence_columns=seeds), params)
    return [batch.tokens[batch.sequence(i)][len(prompt) :].tolist() for i, prompt in enumerate(PROMPTS)]
