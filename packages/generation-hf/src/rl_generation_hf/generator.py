"""The generator ``hf``: a Hugging Face model behind :class:`rl_core.contracts.generation.StreamingGenerator`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WeightBucket, WorkerContext
from rl_core.contracts.generation import Completion, GenerationRequest, Sampling, Want
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_core.errors import RLError
from rl_huggingface.foreign import foreign
from rl_huggingface.model_folder import check_files
from rl_rollout.batch_call import BatchCall
from rl_rollout.request_checks import check_request, check_requests, check_sampling
from rl_rollout.routing.results import Results
from rl_torch.models import build_model
from rl_torch.profiling import Profiler
from rl_torch.weights import load_buckets_into
from transformers import AutoTokenizer, PreTrainedModel

from rl_generation_hf.engine import Engine
from rl_generation_hf.engine_thread import EngineThread

if TYPE_CHECKING:  # what computes needs no pydantic: it runs wherever PyTorch and transformers do
    from rl_generation_hf.config import HfGeneratorConfig

logger = logging.getLogger(__name__)


class HfGenerator:
    """Samples with its own engine on the CPU or one GPU; see the contracts for each method.

    A batch call (:meth:`generate`) is a submission like any other. It is bit-exact where nothing else is in flight.
    """

    wants: frozenset[Want] = frozenset(("prompt_logprobs", "top_logprobs"))

    def __init__(self, config: HfGeneratorConfig) -> None:
        self.config = config
        self._device = torch.device("cpu")
        self._loaded: _Loaded | None = None
        self._asleep = False
        self._threads = 1
        self._profiler = Profiler()

    def setup(self, context: WorkerContext) -> None:
        """Set the number of CPU threads and the device."""
        self._threads = max(1, context.threads)
        torch.set_num_threads(self._threads)
        self._device = torch.device(context.device)

    def load(self, model: ModelSpec, tokenizer_path: str | None) -> None:
        """Build the model with weights version 0; a tokenizer is only read when stop strings are used."""
        built = build_model(model, dtype=getattr(torch, self.config.dtype), device=self._device)
        tokenizer = _Tokenizer(tokenizer_path, trust_remote_code=model.trust_remote_code)
        engine = Engine(
            built.eval(),
            max_batch_tokens=self.config.max_batch_tokens,
            tokens=model.vocab_size,
            never=model.never_sampled,
            kernels=self.config.kernels,
            tokenizer=tokenizer,
        )
        thread = EngineThread(engine, threads=self._threads, around=lambda: self._profiler.section("generate"))
        self._loaded = _Loaded(engine, thread, model, tokenizer if tokenizer_path is not None else None)
        self._asleep = False
        logger.info("loaded %s on %s, context %d", built.config.model_type, self._device, self._loaded.context[0])

    def submit(self, requests: Sequence[GenerationRequest]) -> Results:
        """Queue requests; iterate over the result for their completions.

        Raises:
            ValueError: a request out of range, that wants what there is not, or whose id is in flight.
            RLError: by the iteration: the model's logits are not finite.
        """
        loaded = self._ready()
        context, context_from = loaded.context
        before: GenerationRequest | None = None
        for request in requests:
            if before is not None and _same_but_for_the_sample(request, before):
                continue
            before = request
            check_request(
                request,
                check_sampling=loaded.check_sampling,
                context=context,
                context_from=context_from,
                vocab_size=loaded.engine.vocab_size,
                wants=self.wants,
            )
            if request.media:
                raise ValueError(f"request {request.id}: generator hf reads text alone, and it has media")
        results = Results(len(requests), check=_check_finite)
        loaded.thread.submit(requests, results)
        return results

    def abort(self, ids: Collection[str] | None = None) -> None:
        """End requests, all by default; what they have is delivered."""
        self._require().thread.abort(ids)

    def pause(self) -> None:
        """Return when no step is running; none begins until :meth:`resume`."""
        self._require().thread.pause()

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self._require().thread.resume()

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> SequenceBatch:
        """Sample completions.

        Raises:
            ValueError: sampling parameters out of range, stop strings without a tokenizer, no column
                ``seed``, an empty prompt, a prompt that with ``max_new_tokens`` exceeds the context.
            RLError: the model's logits are not finite.
        """
        loaded = self._ready()
        loaded.check_sampling(sampling)
        context, context_from = loaded.context
        check_requests(
            requests, sampling, context=context, context_from=context_from, vocab_size=loaded.engine.vocab_size
        )
        call = BatchCall(requests, sampling)
        results = Results(len(call.requests))
        loaded.thread.submit(call.requests, results)
        try:
            batch = call.gather(results.all())
        except KeyboardInterrupt:
            loaded.thread.abort([request.id for request in call.requests])
            raise
        _check_batch_finite(batch)
        return batch

    def update_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """Replace all parameters by name; the next tokens carry ``version``, also those of completions in progress."""
        loaded = self._require()
        engine = loaded.engine

        def replace() -> None:
            load_buckets_into(engine.model, buckets)
            engine.forward.refresh()
            engine.version = version
            if self.config.partial_rollouts == "restart":
                engine.restart()

        loaded.thread.call(replace)

    def sleep(self) -> None:
        """On a GPU: drop the cache and move the weights to the host. On the CPU there is nothing to free for.

        Raises:
            RuntimeError: requests are in flight.
        """
        if self._loaded is None or self._asleep:
            return
        loaded = self._loaded
        if loaded.thread.in_flight:
            raise RuntimeError(
                f"generator hf: {loaded.thread.in_flight} requests are in flight; abort them before sleep"
            )
        if self._device.type == "cpu":
            return
        loaded.thread.call(loaded.engine.cache.release)
        model: Any = loaded.engine.model  # transformers wraps `to` without its types
        model.to("cpu")
        self._asleep = True
        torch.cuda.empty_cache()

    def wake(self) -> None:
        """Move the weights back; weights that were updated meanwhile are kept."""
        if self._asleep and self._loaded is not None:
            model: Any = self._loaded.engine.model
            model.to(self._device)
            self._asleep = False

    def start_profile(self, trace: str | None) -> None:
        """Measure the engine's steps, and record a trace, until :meth:`stop_profile`."""
        # A trace is of the thread that begins it.
        self._require().thread.call(lambda: self._profiler.start(trace))

    def stop_profile(self) -> dict[str, float]:
        """Seconds by section."""
        seconds: dict[str, float] = self._require().thread.call(self._profiler.stop)
        return seconds

    def close(self) -> None:
        """Drop the model and its cache; requests in flight fail."""
        if self._loaded is not None:
            self._loaded.thread.call(self._profiler.close)
            self._loaded.thread.close(RuntimeError("generator hf: it was closed while requests were in flight"))
        self._loaded = None
        self._asleep = False
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _require(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("generator hf: no model is loaded; call load first")
        return self._loaded

    def _ready(self) -> _Loaded:
        if self._asleep:
            raise RuntimeError("generator hf: the model sleeps on the host; call wake first")
        return self._require()


class _Loaded:
    """State of one loaded model."""

    def __init__(self, engine: Engine, thread: EngineThread, spec: ModelSpec, tokenizer: _Tokenizer | None) -> None:
        self.engine = engine
        self.thread = thread
        self.spec = spec
        self.tokenizer = tokenizer

    def check_sampling(self, sampling: SamplingParams | Sampling) -> None:
        """See :func:`rl_rollout.request_checks.check_sampling`; a tokenizer that is needed can then be used."""
        check_sampling(sampling, has_tokenizer=self.tokenizer is not None)
        if sampling.stop and self.tokenizer is not None:
            _ = self.tokenizer.batch_decode

    @cached_property
    def context(self) -> tuple[int, str]:
        """Longest sequence in tokens (0: unknown), and the setting that limits it."""
        model: PreTrainedModel = self.engine.model
        own = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
        if own and not 0 < self.spec.max_length <= own:
            return own, "max_position_embeddings of the model"
        return self.spec.max_length, "model.max_length"


class _Tokenizer:
    """A saved tokenizer, read on first use: most runs have no stop strings."""

    def __init__(self, path: str | None, *, trust_remote_code: bool) -> None:
        self._path = str(path)
        self._trust_remote_code = trust_remote_code

    @cached_property
    def batch_decode(self) -> Any:
        """Of the tokenizer."""
        with foreign(self._path, what="the tokenizer of"):
            if os.path.isdir(self._path):
                check_files(Path(self._path))
            return AutoTokenizer.from_pretrained(self._path, trust_remote_code=self._trust_remote_code).batch_decode


def _same_but_for_the_sample(one: GenerationRequest, other: GenerationRequest) -> bool:
    """Whether what a check looks at is the same object in both, as in the requests of a group."""
    return (
        one.tokens is other.tokens
        and one.sampling is other.sampling
        and one.want == other.want
        and one.media is other.media
    )


def _check_finite(completion: Completion) -> None:
    """Raise RLError where a completion ended because the logits were not finite."""
    if len(completion.logprobs) and not np.isfinite(completion.logprobs[-1]):
        raise _not_finite(completion.id, len(completion.logprobs) - 1, completion.weights_version[-1])


def _check_batch_finite(batch: SequenceBatch) -> None:
    bad = np.flatnonzero(~np.isfinite(batch.token_columns["sampled_logprobs"]))
    if len(bad):
        sequence = int(batch.sequence_ids[bad[0]])
        columns = batch.sequence_columns
        raise _not_finite(
            f"{columns['request'][sequence]}, sample {columns['sample'][sequence]}",
            int(bad[0] - batch.offsets[sequence] - columns["prompt_length"][sequence]),
            batch.token_columns["weights_version"][bad[0]],
        )


def _not_finite(request: str, token: int, version: int) -> RLError:
    return RLError(
        f"generator hf: request {request}: the model's logits are not finite at completion token {token} (weights "
        f"version {version}); the policy has diverged or its weights are damaged: go back to a checkpoint and lower "
        "algorithm.learning_rate"
    )
