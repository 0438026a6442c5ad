"""The decoding loop: reads prompts, adds one token to every running completion, drops finished ones.

Rows join when there is room (continuous batching, Yu et al. 2022, "Orca") and leave in the step
they finish, so no forward ever computes a finished row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.generator import SamplingParams
from rl_torch.kernels.contract import KernelChoice
from torch import Tensor
from transformers import PreTrainedModel

from rl_generation_hf.cache import SlotCache
from rl_generation_hf.exclusion import NeverSampled
from rl_generation_hf.forward import forward_of
from rl_generation_hf.philox import uniforms
from rl_generation_hf.sampling import sample
from rl_generation_hf.schedule import Admission, Schedule
from rl_generation_hf.stopping import StopCondition

# A cache of another shape is copied into only where it lets this many times more rows run.
_WORTH_RESIZING = 1.5

# Padded prompt tokens per forward. On the CPU activations that stay in its cache win (about 10 %).
_PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Completions:
    """Sampled tokens: row ``b·n + k`` is sample ``k`` of request ``b``.

    Attributes:
        tokens: int32 [B·n, max_new_tokens], valid up to ``lengths``.
        logprobs: float32, same shape.
        versions: int32, same shape; version of the weights that sampled the token.
        lengths: int64 [B·n], at least 1.
        truncated: bool [B·n], ended by length.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    @classmethod
    def empty(cls, rows: int, max_new_tokens: int) -> Completions:
        """Room for ``rows`` completions."""
        shape = (rows, max_new_tokens)
        return cls(
            tokens=np.zeros(shape, np.int32),
            logprobs=np.zeros(shape, np.float32),
            versions=np.zeros(shape, np.int32),
            lengths=np.zeros(rows, np.int64),
            truncated=np.zeros(rows, bool),
        )


class Decoder:
    """Runs a causal language model; keeps its cache between calls.

    Args:
        model: from ``AutoModelForCausalLM``, in evaluation mode.
        max_batch_tokens: size of the cache in tokens; one completion always fits.
        tokens: size of the tokenizer, 0 for unknown; ids from there on are never sampled.
        never: further ids that are not.
        kernels: those to try.

    Attributes:
        version: version of the model's weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_batch_tokens: int,
        tokens: int = 0,
        never: Sequence[int] = (),
        kernels: KernelChoice = "none",
    ) -> None:
        self.model = model
        self.version = 0
        self.max_batch_tokens = max_batch_tokens
        config = model.config.get_text_config(decoder=True)
        self.vocab_size: int = config.vocab_size
        self.never_sampled = NeverSampled(self.vocab_size, vocab_size=tokens, ids=never)
        self.cache = SlotCache(getattr(config, "num_hidden_layers", 1))  # blt has several counts
        self.forward = forward_of(model, self.cache, kernels)

    @torch.inference_mode()
    def run(
        self,
        requests: SequenceBatch,
        sampling: SamplingParams,
        stop: StopCondition,
        *,
        new_weights: Callable[[], bool] = lambda: False,
        restart: bool = False,
    ) -> Completions:
        """Sample ``sampling.n`` completions for each prompt of ``requests`` (column ``seed`` is used).

        Args:
            new_weights: called between steps; may replace the model's weights and :attr:`version`, and says so.
            restart: begin unfinished completions anew with new weights. Without it they continue from the tokens they
                have, and keep the keys and values that the old weights computed for these.
        """
        schedule = Schedule(
            requests.lengths,
            n=sampling.n,
            max_new_tokens=sampling.max_new_tokens,
            budget=self.max_batch_tokens,
            vocab_size=self.vocab_size,
            prefill_tokens=_PREFILL_TOKENS[self.model.device.type],
        )
        run = _Run(self, requests, sampling, stop)
        while schedule.waiting or run.count:
            self._fit_cache(schedule, run)
            if schedule.ready(free=run.slots - run.count, slots=run.slots):
                while admission := schedule.admit(free=run.slots - run.count, slots=run.slots):
                    run.read_prompts(admission)
            if run.count:
                run.step()
            if new_weights() and restart:
                schedule.requeue(*run.preempt())
        return run.result

    def _fit_cache(self, schedule: Schedule, run: _Run) -> None:
        """Give ``run`` as many rows as the budget allows for what is running and waiting."""
        if not schedule.waiting:
            return
        columns = max(schedule.columns(), run.columns)
        slots = schedule.slots(columns, run.count)
        if slots < _WORTH_RESIZING * run.slots:
            return
        cache = self.cache
        within = cache.slots * cache.columns <= max(self.max_batch_tokens, slots * columns)
        if cache.slots < slots or cache.columns < columns or not within:
            cache.resize(slots=slots, columns=columns, keep_rows=run.count, keep_columns=run.seen)
        run.grow(slots)


class _Run:
    """The running rows of one call, in the order of their cache slots, and what they have produced."""

    def __init__(
        self, decoder: Decoder, requests: SequenceBatch, sampling: SamplingParams, stop: StopCondition
    ) -> None:
        self._decoder = decoder
        self._requests = requests
        self._lengths = requests.lengths
        self._seeds = requests.sequence_columns["seed"]
        self._sampling = sampling
        self._stop = stop
        self._like = next(decoder.model.parameters())
        self.result = Completions.empty(len(requests) * sampling.n, sampling.max_new_tokens)
        self.slots = 0
        self.count = 0
        self._row = np.zeros(0, np.int64)  # row of the result
        self._position = np.zeros(0, np.int64)  # column of the token to be read next
        self._token = np.zeros(0, np.int64)  # that token
        self._uniforms = np.zeros((0, sampling.max_new_tokens))

    @property
    def seen(self) -> int:
        """Columns of the cache that running rows have filled."""
        return int(self._position[: self.count].max(initial=0))

    @property
    def columns(self) -> int:
        """Columns that running rows may yet fill."""
        prompts = self._lengths[self._row[: self.count] // self._sampling.n]
        return int(prompts.max(initial=-self._sampling.max_new_tokens)) + self._sampling.max_new_tokens

    def grow(self, slots: int) -> None:
        """Allow ``slots`` rows."""
        for name in ("_row", "_position", "_token", "_uniforms"):
            old = getattr(self, name)
            new = np.zeros((slots, *old.shape[1:]), old.dtype)
            new[: self.count] = old[: self.count]
            setattr(self, name, new)
        self.slots = slots

    def preempt(self) -> tuple[np.ndarray, np.ndarray]:
        """Drop what runs; returns the requests and samples (int64 [R] each) that are to be begun anew."""
        rows = self._row[: self.count]
        self.result.lengths[rows] = 0
        self.count = 0
        return rows // self._sampling.n, rows % self._sampling.n

    def read_prompts(self, admission: Admission) -> None:
        """Read prompts into the cache and sample the first token of each new completion."""
        prompts, device = admission.prompts, self._like.device
        lengths = self._lengths[prompts]
        ids = np.zeros((len(prompts), int(lengths[0])), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : lengths[row]] = self._requests.tokens[self._requests.sequence(prompt)]
        source = torch.from_numpy(admission.source).to(device)
        decoder = self._decoder
        decoder.cache.start_prefill(source=source, first=self.count)
        logits = decoder.forward.prefill(torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device))
        self._add(admission)
        self._take(logits[source], self.count - len(admission.samples))

    def step(self) -> None:
        """Add one token to every running completion."""
        device = self._like.device
        position = self._position[: self.count]
        longest = int(position.max())
        equal = longest == int(position.min())
        positions = torch.from_numpy(position.copy()).to(device)
        decoder = self._decoder
        decoder.cache.start_step(positions=positions, longest=longest, equal=equal)
        token = torch.from_numpy(self._token[: self.count].copy()).to(device)
        logits = decoder.forward.decode(token, positions, longest=longest, equal=equal)
        position += 1
        self._take(logits, 0)

    def _add(self, admission: Admission) -> None:
        """Rows for new completions, after the running ones."""
        requests = admission.prompts[admission.source]
        new = slice(self.count, self.count + len(requests))
        self._row[new] = requests * self._sampling.n + admission.samples
        self._position[new] = self._lengths[requests]
        if self._sampling.temperature > 0:
            self._uniforms[new] = uniforms(self._seeds[requests], admission.samples, self._uniforms.shape[1])
        self.count = new.stop

    def _take(self, logits: Tensor, first: int) -> None:
        """Sample a token for each row from ``first`` on, and drop the rows that end with it."""
        rows = slice(first, self.count)
        result, out = self.result, self._row[rows]
        at = result.lengths[out]
        drawn = torch.from_numpy(self._uniforms[rows][np.arange(len(out)), at]).to(logits.device)
        tokens, logprobs = sample(logits, drawn, self._sampling, self._decoder.never_sampled)
        self._token[rows] = tokens.cpu().numpy()
        result.tokens[out, at] = self._token[rows]
        result.logprobs[out, at] = logprobs.cpu().numpy()
        result.versions[out, at] = self._decoder.version
        result.lengths[out] = at + 1
        ended = self._stop.ended(result.tokens[out], at + 1)
        full = at + 1 == self._sampling.max_new_tokens
        result.truncated[out] = full & ~ended
        finished = np.zeros(self.count, bool)
        finished[rows] = ended | full
        if finished.any():
            self._drop(finished)

    def _drop(self, finished: np.ndarray) -> None:
        """Close the gaps that ``finished`` rows leave with rows from the end."""
        kept = self.count - int(finished.sum())
        target = np.flatnonzero(finished[:kept])
        source = np.flatnonzero(~finished[kept:]) + kept
        self.count = kept
        if not len(target):
            return
        for array in (self._row, self._position, self._token, self._uniforms):
            array[target] = array[source]
        device = self._like.device
        self._decoder.cache.move(
            source=torch.from_numpy(source).to(device),
            target=torch.from_numpy(target).to(device),
            columns=int(self._position[target].max()),
        )
