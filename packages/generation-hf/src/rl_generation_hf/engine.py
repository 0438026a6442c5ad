"""The engine: reads prompts, adds one token to every running completion, drops finished ones.

Requests enter between two decoding steps where there is room (continuous batching, Yu et al. 2022, "Orca") and leave in
the step they finish, so no forward ever computes a finished row. It is synchronous and knows no threads:
:mod:`rl_generation_hf.engine_thread` runs it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from rl_core.contracts.generation import Completion, GenerationRequest
from rl_torch.kernels.contract import KernelChoice
from torch import Tensor
from transformers import PreTrainedModel

from rl_generation_hf.cache import SlotCache
from rl_generation_hf.exclusion import NeverSampled
from rl_generation_hf.forward import forward_of
from rl_generation_hf.rows import Kinds, Rows
from rl_generation_hf.sampling import sample
from rl_generation_hf.waiting import Admission, WaitingQueue
from rl_generation_hf.wanted import prompt_logprobs, top_logprobs

# A cache of another shape is copied into only where it lets this many times more rows run.
_WORTH_RESIZING = 1.5

# Padded prompt tokens per forward. On the CPU activations that stay in its cache win (about 10 %).
_PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192}

# A cache that grows while rows run grows in length to a multiple of this, so that it need not for every longer prompt.
_COLUMNS_AT_ONCE = 64


class Engine:
    """Runs a causal language model on a queue of requests; keeps its cache.

    Completions depend on their request and the weights alone, up to rounding; to the last bit where the same requests
    are submitted at once to an idle engine.

    Args:
        model: from ``AutoModelForCausalLM``, in evaluation mode.
        max_batch_tokens: size of the cache in tokens; one completion always fits.
        tokens: size of the tokenizer, 0 for unknown; ids from there on are never sampled.
        never: further ids that are not.
        kernels: those to try.
        tokenizer: a Hugging Face tokenizer; needed for stop strings.

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
        tokenizer: Any = None,
    ) -> None:
        self.model = model
        self.version = 0
        self.max_batch_tokens = max_batch_tokens
        config = model.config.get_text_config(decoder=True)
        self.vocab_size: int = config.vocab_size
        self.never_sampled = NeverSampled(self.vocab_size, vocab_size=tokens, ids=never)
        self.cache = SlotCache(getattr(config, "num_hidden_layers", 1))  # blt has several counts
        self.forward = forward_of(model, self.cache, kernels)
        self._parameter = next(model.parameters())
        self._queue = WaitingQueue(vocab_size=self.vocab_size, prefill_tokens=_PREFILL_TOKENS[self.model.device.type])
        self._rows = Rows()
        self._kinds = Kinds(tokenizer)
        self._arrived = False
        self._finished: list[Completion] = []

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._queue.count + self._rows.count

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Queue requests, which are valid: see :mod:`rl_rollout.request_checks`."""
        if not self.in_flight:
            self._idle()
        self._queue.submit(requests)
        self._arrived = True

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Read waiting prompts where there is room, and add one token to every running completion.

        Returns:
            completions that have finished, in the order they were submitted within what is admitted at once. One
            whose logits were not finite ends there, with that token's log-prob.
        """
        rows, queue = self._rows, self._queue
        self._fit_cache()
        if queue.ready(free=rows.slots - rows.count, slots=rows.slots):
            while admission := queue.admit(free=rows.slots - rows.count, slots=rows.slots, columns=self.cache.columns):
                self._read_prompts(admission)
        if rows.count:
            self._decode()
        finished, self._finished = self._finished, []
        return finished

    @torch.inference_mode()
    def abort(self, ids: Collection[str] | None = None) -> list[Completion]:
        """End requests, all by default; those that were in flight, with the tokens they have."""
        rows = self._rows
        running = [row.request.id for row in rows.rows]
        if ids is None:
            ids = [*running, *(request.id for prompt in self._queue for request in prompt.waiting)]
        gone = set(ids)
        ended = np.array([id in gone for id in running], bool)
        found = [rows.completion(int(row), "abort") for row in np.flatnonzero(ended)]
        if ended.any():
            self._drop(ended)
        none = np.zeros(0, np.int32)
        found += [
            Completion(request.id, none, np.zeros(0, np.float32), none, "abort") for request in self._queue.remove(gone)
        ]
        return found

    def restart(self) -> None:
        """Begin what runs anew: with new weights, so that no completion holds tokens of two versions."""
        rows = self._rows
        self._queue.requeue((row.request, row.prompt) for row in rows.rows)
        rows.rows.clear()
        rows.count = 0

    def clear(self) -> None:
        """Forget all requests, and release the cache."""
        self._queue.remove([request.id for prompt in self._queue for request in prompt.waiting])
        self._rows.clear()
        self._finished = []
        self.cache.release()

    @property
    def _device(self) -> torch.device:
        return self._parameter.device

    def _idle(self) -> None:
        """What comes next begins as in a new engine: but for the memory of the cache, which is kept."""
        self._rows.clear()
        self._kinds.clear()

    def _fit_cache(self) -> None:
        """Allow as many rows as the budget holds of what is running and waiting, and give the cache their shape."""
        rows, cache, arrived = self._rows, self.cache, self._arrived
        if not self._queue.count:
            return
        self._arrived = False
        columns = max(self._queue.first_columns, rows.columns)
        most = max(1, self.max_batch_tokens // columns)
        slots = min(most, self._queue.count + rows.count)
        longer = self._queue.first_columns > cache.columns
        if longer and rows.count > most:
            return  # it starts when enough rows are through
        grows = slots >= _WORTH_RESIZING * rows.slots or (arrived and slots > rows.slots)
        if not grows and not longer:
            return
        within = cache.slots * cache.columns <= max(self.max_batch_tokens, slots * columns)
        if cache.slots < slots or cache.columns < columns or not within:
            self._resize(slots, columns, most)
        rows.allow(slots)

    def _resize(self, slots: int, columns: int, most: int) -> None:
        """Another shape of the cache; with room for further ones where it is copied because requests arrive."""
        rows, cache = self._rows, self.cache
        if rows.count:
            slots = max(slots, min(most, 2 * cache.slots))
            if columns > cache.columns:
                longer = -(-columns // _COLUMNS_AT_ONCE) * _COLUMNS_AT_ONCE
                columns = max(columns, min(longer, self.max_batch_tokens // slots))
        cache.resize(slots=slots, columns=columns, keep_rows=rows.count, keep_columns=rows.seen)

    def _read_prompts(self, admission: Admission) -> None:
        """Read prompts into the cache and sample the first token of each new completion."""
        device = self._device
        lengths = np.array([prompt.length for prompt in admission.prompts])
        ids = np.zeros((len(lengths), int(lengths[0])), np.int64)
        for place, prompt in enumerate(admission.prompts):
            ids[place, : prompt.length] = prompt.tokens
        source = torch.from_numpy(admission.source).to(device)
        self.cache.start_prefill(source=source, first=self._rows.count)
        logits = self.forward.prefill(torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device))
        new = self._rows.add(admission, [self._kinds.of(request.sampling) for request in admission.requests])
        for row in self._rows.rows[new]:
            if "prompt_logprobs" in row.request.want:
                row.columns["prompt_logprobs"] = prompt_logprobs(
                    self.model, row.prompt.tokens, row.kind.shape.temperature
                )
        self._take(logits[source], new)

    def _decode(self) -> None:
        """Add one token to every running completion."""
        rows, device = self._rows, self._device
        position = rows.position[: rows.count]
        longest = int(position.max())
        equal = longest == int(position.min())
        positions = torch.from_numpy(position.copy()).to(device)
        self.cache.start_step(positions=positions, longest=longest, equal=equal)
        token = torch.from_numpy(rows.token[: rows.count].copy()).to(device)
        logits = self.forward.decode(token, positions, longest=longest, equal=equal)
        position += 1
        self._take(logits, slice(0, rows.count))

    def _take(self, logits: Tensor, new: slice) -> None:
        """Sample a token for each of the rows ``new``, the last ones, and drop those that end with it."""
        rows, kinds = self._rows, self._kinds
        at, numbers = rows.length[new], rows.kind[new]
        drawn = torch.from_numpy(rows.uniforms[new][np.arange(len(at)), at]).to(logits.device)
        same = bool((numbers == numbers[0]).all())
        shapes = kinds[numbers[0]].shape if same else [kinds[number].shape for number in numbers]
        tokens, logprobs = sample(logits, drawn, shapes, self.never_sampled)
        self._add_top(logits, new)
        rows.write(new, tokens.cpu().numpy(), found := logprobs.cpu().numpy(), self.version)
        stopped = self._stopped(new, numbers, same=same)
        broken = ~np.isfinite(found)
        ended = stopped | broken | (rows.length[new] == rows.limit[new])
        if not ended.any():
            return
        if broken.any():
            self.cache.clear(torch.from_numpy(np.flatnonzero(broken) + new.start).to(logits.device))
        for row in np.flatnonzero(ended).tolist():
            self._finished.append(rows.completion(new.start + row, "stop" if stopped[row] else "length"))
        finished = np.zeros(rows.count, bool)
        finished[new] = ended
        self._drop(finished)

    def _stopped(self, new: slice, numbers: np.ndarray, *, same: bool) -> np.ndarray:
        """Whether a stop token or string ended each row, bool [R]; ``numbers`` are their kinds."""
        rows = self._rows
        tokens, lengths = rows.tokens[new], rows.length[new]
        if same:
            return self._kinds[numbers[0]].stop.ended(tokens, lengths)
        stopped = np.zeros(len(numbers), bool)
        for number in np.unique(numbers):
            which = np.flatnonzero(numbers == number)
            stopped[which] = self._kinds[number].stop.ended(tokens[which], lengths[which])
        return stopped

    def _add_top(self, logits: Tensor, new: slice) -> None:
        """Keep the most likely tokens of those rows whose requests want them."""
        if not self._rows.any_top:
            return
        for logits_of_row, row in zip(logits, self._rows.rows[new], strict=True):
            if "top_logprobs" in row.request.want:
                row.top.append(top_logprobs(logits_of_row, row.kind.shape.temperature))

    def _drop(self, finished: np.ndarray) -> None:
        """Take ``finished`` rows (bool [count]) out of the cache."""
        source, target = self._rows.drop(finished)
        if len(target):
            self.cache.move(
                source=torch.from_numpy(source).to(self._device),
                target=torch.from_numpy(target).to(self._device),
                columns=int(self._rows.position[target].max()),
            )
