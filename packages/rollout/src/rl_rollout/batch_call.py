"""A batch call of a generator as single requests: ``n`` for each prompt, and their completions as one batch again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import fields

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.generation import Completion, GenerationRequest, Sampling
from rl_core.contracts.generator import SamplingParams


class BatchCall:
    """The requests of one :meth:`rl_core.contracts.generator.Generator.generate`.

    Args:
        requests: B prompts with sequence column ``seed``, int64 or uint64 [B].
        sampling: the same for all.

    Attributes:
        requests: B·n single requests: request ``b·n + k`` is sample ``k`` of prompt ``b``. Their order is the order
            in which an engine that gets all at once admits prompts of equal length.
    """

    def __init__(self, requests: SequenceBatch, sampling: SamplingParams) -> None:
        self._prompts = requests
        self._n = sampling.n
        each = Sampling(**{one.name: getattr(sampling, one.name) for one in fields(Sampling)})
        call = uuid.uuid4().hex
        seeds = requests.sequence_columns["seed"].tolist()
        self.requests = [
            GenerationRequest(
                id=f"{call}/{prompt * self._n + sample}", tokens=tokens, sampling=each, seed=seed, sample=sample
            )
            for prompt, seed in enumerate(seeds)
            for tokens in [requests.tokens[requests.sequence(prompt)]]
            for sample in range(self._n)
        ]

    def gather(self, completions: Iterable[Completion]) -> SequenceBatch:
        """Prompts followed by their completions, with the columns of ``generate``.

        Args:
            completions: one for each request, in any order.

        Raises:
            RuntimeError: one was aborted.
        """
        answers: list[Completion] = sorted(completions, key=lambda c: int(c.id.rpartition("/")[2]))
        if any(answer.finish == "abort" for answer in answers):
            raise RuntimeError("generate: its requests were aborted before they were complete")
        prompts, n = self._prompts, self._n
        request = np.repeat(np.arange(len(prompts), dtype=np.int64), n)
        prompt_length = prompts.lengths[request]
        lengths = np.fromiter((len(a.tokens) for a in answers), np.int64, count=len(answers))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(prompt_length + lengths)])
        total = int(offsets[-1])
        within = np.arange(total, dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))
        sampled = within >= np.repeat(prompt_length, np.diff(offsets))
        tokens, logprobs = np.empty(total, np.int32), np.zeros(total, np.float32)
        tokens[~sampled] = prompts.tokens[prompts.token_index(request)]
        tokens[sampled] = _joined([a.tokens for a in answers], np.int32)
        logprobs[sampled] = _joined([a.logprobs for a in answers], np.float32)
        # Of a prompt: that of its first answer.
        first = np.fromiter((a.weights_version[0] for a in answers), np.int32, count=len(answers))
        versions = np.repeat(first, np.diff(offsets))
        versions[sampled] = _joined([a.weights_version for a in answers], np.int32)
        return SequenceBatch(
            tokens,
            offsets,
            {"loss_mask": sampled.astype(np.float32), "sampled_logprobs": logprobs, "weights_version": versions},
            {
                "request": request,
                "sample": np.tile(np.arange(n, dtype=np.int64), len(prompts)),
                "truncated": np.fromiter((a.finish == "length" for a in answers), bool, count=len(answers)),
                "prompt_length": prompt_length,
            },
        )


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
