"""The generator ``vllm``: an engine behind :class:`rl_core.contracts.generator.Generator`."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WeightBucket, WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_core.errors import EnvironmentProblem, RLError
from rl_huggingface.foreign import foreign
from rl_rollout.request_checks import check_requests, check_sampling
from rl_rollout.weight_updates import WeightUpdates
from rl_torch.checkpoint_files import open_checkpoint
from rl_torch.models import build_config
from rl_torch.pretrained import empty_like
from rl_torch.weight_plan import WeightPlan
from transformers import CONFIG_NAME, AutoModelForCausalLM, PretrainedConfig

from rl_generation_vllm.batches import to_batch
from rl_generation_vllm.config import VllmConfig
from rl_generation_vllm.environment import prepare
from rl_generation_vllm.parameters import ModelParameters
from rl_generation_vllm.shapes import cpu_cache_bytes, shape_finding, shape_of_config

if TYPE_CHECKING:
    from rl_generation_vllm.engine import Engine

logger = logging.getLogger(__name__)

_LARGEST_DEFAULT_CACHE = 4 * 2**30


class VllmGenerator:
    """Samples with vLLM; see the contract for each method."""

    def __init__(self, config: VllmConfig) -> None:
        self.config = config
        self._device = "cpu"
        self._shares_device = False
        self._loaded: _Loaded | None = None
        self._version = 0
        self._updates = WeightUpdates()

    def setup(self, context: WorkerContext) -> None:
        """Set threads and device, before vLLM is imported."""
        import torch

        self._device, self._shares_device = context.device, context.shares_device
        prepare(context.device)
        torch.set_num_threads(max(1, context.threads))

    def load(self, model: ModelSpec, tokenizer_path: str | None) -> None:
        """Start an engine with weights version 0.

        With ``model.init`` it has no weights: requests are refused until ``update_weights`` brought some.

        Raises:
            EnvironmentProblem: the model cannot be read, vLLM cannot serve it on this device, or it is
                installed for another device.
        """
        self.close()
        config = build_config(model)
        self._check_shape(config)
        parameters = ModelParameters.of(config, trust_remote_code=model.trust_remote_code)
        if model.path is not None:
            _check_weights(model.path, config, trust_remote_code=model.trust_remote_code)
        context, context_from = _context(config, model)
        folder = tempfile.TemporaryDirectory(prefix="rl-vllm-")
        with ExitStack() as undo:
            undo.callback(folder.cleanup)
            _write_folder(folder.name, config, parameters, tokenizer_path)
            engine = self._start(model, config, folder.name, tokenizer_path, context)
            undo.pop_all()
        self._loaded = _Loaded(
            engine=engine,
            folder=folder,
            parameters=parameters,
            has_tokenizer=tokenizer_path is not None,
            has_weights=model.path is not None,
            context=context,
            context_from=context_from,
            vocab_size=config.get_text_config(decoder=True).vocab_size,
        )
        self._version = 0
        logger.info("started vLLM for %s on %s, context %d", parameters.architecture, self._device, context)

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> SequenceBatch:
        """Sample completions.

        Raises:
            ValueError: sampling parameters out of range, stop strings without a tokenizer, no column
                ``seed``, an empty prompt, a prompt that with ``max_new_tokens`` exceeds the context.
            RLError: the model's logits are not finite.
        """
        loaded = self._ready()
        check_sampling(sampling, has_tokenizer=loaded.has_tokenizer)
        check_requests(
            requests,
            sampling,
            context=loaded.context,
            context_from=loaded.context_from,
            vocab_size=loaded.vocab_size,
        )
        with self._updates.sampling():
            completions = loaded.engine.generate(requests, sampling)
            batch = to_batch(requests, completions, n=sampling.n, version=self._version)
            self._check_finite(batch)
        return batch

    def update_weights(self, buckets: list[WeightBucket], version: int) -> None:
        """Replace all parameters by name; the next completions carry ``version``.

        Names and shapes are checked before the engine is touched. While completions are sampled it waits for their end.
        """
        loaded = self._require()
        loaded.parameters.check(buckets)

        def replace() -> None:
            loaded.has_weights = False  # should it fail half-way
            parameters = loaded.parameters
            loaded.engine.update_weights(buckets, parameters.renamed(buckets), parameters.published_as)
            loaded.has_weights = True
            self._version = version

        self._updates.apply(replace)

    def sleep(self) -> None:
        """On a GPU: move the weights to the host and drop the cache. On the CPU there is nothing to free for."""
        if self._loaded is not None:
            self._loaded.engine.sleep()

    def wake(self) -> None:
        """Undo ``sleep``; weights that were updated meanwhile are kept."""
        if self._loaded is not None:
            self._loaded.engine.wake()

    def close(self) -> None:
        """End the engine."""
        if self._loaded is not None:
            self._loaded.engine.close()
            self._loaded.folder.cleanup()
            self._loaded = None

    def _start(
        self, model: ModelSpec, config: PretrainedConfig, folder: str, tokenizer_path: str | None, context: int
    ) -> Engine:
        # Not at the top: importing vLLM reads the environment that setup prepares.
        from rl_generation_vllm.engine import Engine, EngineOptions

        own = self.config
        rows = config.get_text_config(decoder=True).vocab_size
        return Engine(
            EngineOptions(
                folder=model.path or folder,
                dummy=model.path is None,
                tokenizer_path=folder if tokenizer_path else None,
                trust_remote_code=model.trust_remote_code,
                context=context,
                device=self._device,
                dtype=own.resolved_dtype(self._device),
                tensor_parallel=own.tensor_parallel,
                max_num_seqs=own.max_num_seqs,
                kv_cache_bytes=self._cache_bytes(config, context),
                gpu_memory_utilization=own.gpu_memory_utilization,
                enforce_eager=own.enforce_eager,
                shares_device=self._shares_device,
                # A model's own size needs no processor in the engine.
                vocab_size=model.vocab_size if model.vocab_size < rows else 0,
                never_sampled=model.never_sampled,
            )
        )

    def _cache_bytes(self, config: PretrainedConfig, context: int) -> int | None:
        if self.config.kv_cache_bytes is not None or self._device != "cpu":
            return self.config.kv_cache_bytes
        shape = shape_of_config(config.to_dict())
        if shape is None:
            return _LARGEST_DEFAULT_CACHE
        one, all_ = (
            cpu_cache_bytes(shape, sequences=n, length=context, dtype=self.config.resolved_dtype("cpu"))
            for n in (1, self.config.max_num_seqs)
        )
        return max(one, min(all_, _LARGEST_DEFAULT_CACHE))

    def _check_shape(self, config: PretrainedConfig) -> None:
        shape = shape_of_config(config.to_dict())
        if shape is None:
            return
        found = shape_finding(shape, device=self._device, tensor_parallel=self.config.tensor_parallel)
        if found is not None:
            raise EnvironmentProblem("\n    ".join(found))

    def _require(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("generator vllm: no model is loaded; call load first")
        return self._loaded

    def _ready(self) -> _Loaded:
        loaded = self._require()
        if loaded.engine.asleep:
            raise RuntimeError("generator vllm: the model sleeps on the host; call wake first")
        if not loaded.has_weights:
            raise RuntimeError("generator vllm: the model has no weights, or not all of them; call update_weights")
        return loaded

    def _check_finite(self, batch: SequenceBatch) -> None:
        bad = np.flatnonzero(~np.isfinite(batch.token_columns["sampled_logprobs"]))
        if not len(bad):
            return
        self._require().engine.clear_cache()  # keys and values may be NaN, too
        sequence = int(batch.sequence_ids[bad[0]])
        columns = batch.sequence_columns
        at = int(bad[0] - batch.offsets[sequence] - columns["prompt_length"][sequence])
        raise RLError(
            f"generator vllm: request {columns['request'][sequence]}, sample {columns['sample'][sequence]}: the "
            f"model's logits are not finite at completion token {at} (weights version {self._version}); the policy "
            "has diverged or its weights are damaged: go back to a checkpoint and lower algorithm.learning_rate"
        )


@dataclass
class _Loaded:
    """State of one loaded model."""

    engine: Engine
    folder: tempfile.TemporaryDirectory[str]
    parameters: ModelParameters
    has_tokenizer: bool
    has_weights: bool
    context: int
    context_from: str
    vocab_size: int


def _check_weights(path: str, config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Refuse a folder whose weights are not the model's, and one that vLLM would keep quantised.

    Raises:
        EnvironmentProblem: see there.
    """
    with foreign(path):
        files = open_checkpoint(path)
        if files is not None and files.is_quantized:
            raise EnvironmentProblem(
                f"the weights of {path} are quantised; vLLM would keep them so, and training's do not fit in\n"
                "    use generator: {name: hf}, or give a copy of the model with float weights"
            )
        if files is not None and not trust_remote_code:
            WeightPlan.of(empty_like(AutoModelForCausalLM, config), files)


def _context(config: PretrainedConfig, model: ModelSpec) -> tuple[int, str]:
    """Longest sequence in tokens, and the setting that limits it."""
    own = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    if own and not 0 < model.max_length <= own:
        return own, "max_position_embeddings of the model"
    return model.max_length, "model.max_length"


def _write_folder(
    folder: str, config: PretrainedConfig, parameters: ModelParameters, tokenizer_path: str | None
) -> None:
    """A model folder without weights for vLLM, which chooses its own class by the architecture's name.

    It also holds the tokenizer's files, because vLLM looks for ``config.json`` next to them.
    """
    for file in Path(tokenizer_path).iterdir() if tokenizer_path else ():
        (Path(folder) / file.name).symlink_to(file.resolve())
    config.architectures = [parameters.architecture]
    own = Path(folder) / CONFIG_NAME
    own.unlink(missing_ok=True)
    config.save_pretrained(folder)
