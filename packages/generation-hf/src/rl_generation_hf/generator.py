"""The generator ``hf``: a Hugging Face model behind :class:`rl_core.contracts.generator.Generator`."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WeightBucket, WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_core.errors import RLError
from rl_huggingface.foreign import foreign
from rl_huggingface.model_folder import check_files
from rl_rollout.request_checks import check_requests, check_sampling
from rl_rollout.weight_updates import WeightUpdates
from rl_torch.models import build_model
from rl_torch.profiling import Profiler
from rl_torch.weights import load_buckets_into
from transformers import AutoTokenizer, PreTrainedModel

from rl_generation_hf.decoding import Completions, Decoder
from rl_generation_hf.stopping import StopCondition

if TYPE_CHECKING:  # what computes needs no pydantic: it runs wherever PyTorch and transformers do
    from rl_generation_hf.config import HfGeneratorConfig

logger = logging.getLogger(__name__)


class HfGenerator:
    """Samples with its own decoding loop on the CPU or one GPU; see the contract for each method."""

    def __init__(self, config: HfGeneratorConfig) -> None:
        self.config = config
        self._device = torch.device("cpu")
        self._loaded: _Loaded | None = None
        self._updates = WeightUpdates()
        self._asleep = False
        self._profiler = Profiler()

    def setup(self, context: WorkerContext) -> None:
        """Set the number of CPU threads and the device."""
        torch.set_num_threads(max(1, context.threads))
        self._device = torch.device(context.device)

    def load(self, model: ModelSpec, tokenizer_path: str | None) -> None:
        """Build the model with weights version 0; a tokenizer is only read when stop strings are used."""
        built = build_model(model, dtype=getattr(torch, self.config.dtype), device=self._device)
        decoder = Decoder(
            built.eval(),
            max_batch_tokens=self.config.max_batch_tokens,
            tokens=model.vocab_size,
            never=model.never_sampled,
            kernels=self.config.kernels,
        )
        self._loaded = _Loaded(decoder, model, tokenizer_path)
        self._asleep = False
        logger.info("loaded %s on %s, context %d", built.config.model_type, self._device, self._loaded.context[0])

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> SequenceBatch:
        """Sample completions.

        Raises:
            ValueError: sampling parameters out of range, stop strings without a tokenizer, no column
                ``seed``, an empty prompt, a prompt that with ``max_new_tokens`` exceeds the context.
            RLError: the model's logits are not finite.
        """
        loaded = self._ready()
        check_sampling(sampling, has_tokenizer=loaded.tokenizer_path is not None)
        context, context_from = loaded.context
        check_requests(
            requests, sampling, context=context, context_from=context_from, vocab_size=loaded.decoder.vocab_size
        )
        stop = StopCondition(
            token_ids=sampling.stop_token_ids,
            strings=sampling.stop,
            tokenizer=loaded.tokenizer if sampling.stop else None,
        )
        with self._updates.sampling(), self._profiler.section("generate"):
            completions = loaded.decoder.run(
                requests,
                sampling,
                stop,
                new_weights=self._updates.between_steps,
                restart=self.config.partial_rollouts == "restart",
            )
            batch = _to_batch(requests, completions, n=sampling.n)
            self._check_finite(batch)
        return batch

    def update_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """Replace all parameters by name; the next tokens carry ``version``, also those of completions in progress."""
        decoder = self._require().decoder

        def replace() -> None:
            load_buckets_into(decoder.model, buckets)
            decoder.forward.refresh()
            decoder.version = version

        self._updates.apply(replace)

    def sleep(self) -> None:
        """On a GPU: drop the cache and move the weights to the host. On the CPU there is nothing to free for."""
        if self._device.type == "cpu" or self._loaded is None or self._asleep:
            return
        self._loaded.decoder.cache.release()
        model: Any = self._loaded.decoder.model  # transformers wraps `to` without its types
        model.to("cpu")
        self._asleep = True
        torch.cuda.empty_cache()

    def wake(self) -> None:
        """Move the weights back; weights that were updated meanwhile are kept."""
        if self._asleep and self._loaded is not None:
            model: Any = self._loaded.decoder.model
            model.to(self._device)
            self._asleep = False

    def start_profile(self, trace: str | None) -> None:
        """Measure :meth:`generate`, and record a trace, until :meth:`stop_profile`."""
        self._profiler.start(trace)

    def stop_profile(self) -> dict[str, float]:
        """Seconds by section."""
        return self._profiler.stop()

    def close(self) -> None:
        """Drop the model and its cache."""
        self._profiler.close()
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

    def _check_finite(self, batch: SequenceBatch) -> None:
        bad = np.flatnonzero(~np.isfinite(batch.token_columns["sampled_logprobs"]))
        if not len(bad):
            return
        self._require().decoder.cache.release()  # keys and values may be NaN, too
        sequence = int(batch.sequence_ids[bad[0]])
        columns = batch.sequence_columns
        version = batch.token_columns["weights_version"][bad[0]]
        at = int(bad[0] - batch.offsets[sequence] - columns["prompt_length"][sequence])
        raise RLError(
            f"generator hf: request {columns['request'][sequence]}, sample {columns['sample'][sequence]}: the model's "
            f"logits are not finite at completion token {at} (weights version {version}); the policy has "
            "diverged or its weights are damaged: go back to a checkpoint and lower algorithm.learning_rate"
        )


class _Loaded:
    """State of one loaded model."""

    def __init__(self, decoder: Decoder, spec: ModelSpec, tokenizer_path: str | None) -> None:
        self.decoder = decoder
        self.spec = spec
        self.tokenizer_path = tokenizer_path

    @cached_property
    def tokenizer(self) -> Any:
        """Read on first use: most runs have no stop strings."""
        path = str(self.tokenizer_path)
        with foreign(path, what="the tokenizer of"):
            if os.path.isdir(path):
                check_files(Path(path))
            return AutoTokenizer.from_pretrained(path, trust_remote_code=self.spec.trust_remote_code)

    @cached_property
    def context(self) -> tuple[int, str]:
        """Longest sequence in tokens (0: unknown), and the setting that limits it."""
        model: PreTrainedModel = self.decoder.model
        own = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
        if own and not 0 < self.spec.max_length <= own:
            return own, "max_position_embeddings of the model"
        return self.spec.max_length, "model.max_length"


def _to_batch(requests: SequenceBatch, completions: Completions, *, n: int) -> SequenceBatch:
    """Prompts followed by their completions, ragged, with the columns of the contract."""
    rows = len(completions.lengths)
    request = np.repeat(np.arange(len(requests), dtype=np.int64), n)
    prompt_length = requests.lengths[request]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(prompt_length + completions.lengths)])
    total = int(offsets[-1])
    within = np.arange(total, dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))
    sampled = within >= np.repeat(prompt_length, np.diff(offsets))
    valid = np.arange(completions.tokens.shape[1]) < completions.lengths[:, None]
    tokens = np.empty(total, np.int32)
    tokens[~sampled] = requests.tokens[requests.token_index(request)]
    tokens[sampled] = completions.tokens[valid]
    logprobs = np.zeros(total, np.float32)
    logprobs[sampled] = completions.logprobs[valid]
    versions = np.repeat(completions.versions[:, 0], np.diff(offsets))  # of a prompt: that of its first answer
    versions[sampled] = completions.versions[valid]
    return SequenceBatch(
        tokens,
        offsets,
        {
            "loss_mask": sampled.astype(np.float32),
            "sampled_logprobs": logprobs,
            "weights_version": versions,
        },
        {
            "request": request,
            "sample": np.tile(np.arange(n, dtype=np.int64), rows // n),
            "truncated": completions.truncated,
            "prompt_length": prompt_length,
        },
    )
