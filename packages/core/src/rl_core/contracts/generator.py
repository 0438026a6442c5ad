"""A generator: samples completions. Each instance lives in its own Ray actor behind the router.

A generator may also implement :class:`rl_core.contracts.profiling.Profiles`, and single requests with
:class:`rl_core.contracts.generation.StreamingGenerator`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WeightBucket, WorkerContext
from rl_core.contracts.model import ModelSpec


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters; the same for all requests of a call.

    Attributes:
        n: completions per prompt.
        max_new_tokens: upper bound per completion, the end token included.
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: nucleus sampling (Holtzman et al. 2020), 1 for off.
        top_k: keep the k most likely tokens, 0 for off.
        stop: strings that end a completion; the text up to and including the stop string is kept.
        stop_token_ids: tokens that end a completion (:func:`rl_core.contracts.tokenizer.end_token_ids`) and are part
            of it.
    """

    n: int = 1
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


class Generator(Protocol):
    """Samples from a model whose weights are replaced in place. Built as ``factory(config)``."""

    def setup(self, context: WorkerContext) -> None:
        """Set the number of CPU threads and the device. Called once before ``load``."""
        ...

    def load(self, model: ModelSpec, tokenizer_path: str | None) -> None:
        """Build the model; with ``model.init`` the weights arrive by ``update_weights`` before the
        first request. ``tokenizer_path`` is a saved tokenizer folder (needed for stop strings).

        Ids of ``model.never_sampled``, and from ``model.vocab_size`` on where that is not 0, are never sampled."""
        ...

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> SequenceBatch:
        """Sample ``sampling.n`` completions per request.

        Args:
            requests: prompts as sequences, with sequence column ``seed`` (uint64 or int64 [B]).
                Sample ``k`` of a request depends on its tokens, its seed, ``k`` and the weights
                only, never on what else is in the batch (up to floating-point rounding).

        Returns:
            B·n sequences, request by request, of prompt and completion tokens, with token columns
            ``loss_mask`` (float32, 1 on completion tokens), ``sampled_logprobs`` (float32, the
            log-probability of each completion token at the sampling temperature, over the full
            vocabulary, whatever sampling excludes; 0 on the prompt; at temperature 0 those at temperature 1) and
            ``weights_version`` (int32), and sequence columns ``request`` (int64, index into
            ``requests``), ``sample`` (int64, 0..n-1), ``truncated`` (bool, ended by length) and
            ``prompt_length`` (int64).
        """
        ...

    def update_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """Replace parameters by name; a name or shape that does not fit is a ``ValueError`` that lists it.

        What is kept is copied: a transport may use the memory of the buckets again when this returns.

        With ``run.max_staleness`` it may be called while :meth:`generate` runs. The weights then change between two
        decoding steps, and each token's ``weights_version`` is that of the weights that sampled it; see
        ``rl_rollout.weight_updates.WeightUpdates``. A generator whose engine cannot do this may wait for
        the end of ``generate``.
        """
        ...

    def sleep(self) -> None:
        """Free device memory while a colocated backend trains."""
        ...

    def wake(self) -> None:
        """Undo ``sleep``."""
        ...

    def close(self) -> None:
        """Drop the model; the process may then be set up again."""
        ...
