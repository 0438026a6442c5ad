"""Log-probs of whole completions under the frozen reference model, computed once for each.

They are kept in memory and in the stage's folder, by a digest of the token ids and the completion
mask: a row that is tokenized or cut differently, or a changed dataset, simply has other keys. That
the reference model is still the one the file was made with shows on a few fixed probe sequences,
which are its first records.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rl_core.batch import SequenceBatch

from rl_algo_dpo.records import KEY_BYTES, RecordFile

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle

logger = logging.getLogger(__name__)

FILE = Path("reference_logprobs") / "logprobs.bin"
"""File of the values, below the stage's folder."""

_PROBE_SEQUENCES, _PROBE_TOKENS = 4, 16
_PROBE_TOLERANCE = 1e-6  # relative; float32 sums of the same model differ by less on other numbers of ranks


class ReferenceLogprobs:
    """``log π_ref`` of completions; a model is asked only for those it was not asked for before."""

    def __init__(self) -> None:
        self._values: dict[bytes, float] = {}
        self._file: RecordFile | None = None
        self._model: ModelHandle | None = None

    def open(self, directory: str) -> None:
        """Keep the values in ``directory`` from now on, and begin with those that are there."""
        self._file = RecordFile(Path(directory) / FILE)
        self._values = self._file.load()
        self._model = None

    def __call__(self, batch: SequenceBatch, model: ModelHandle) -> np.ndarray:
        """float32 [B]: the sum of the log-probs of each sequence's tokens where ``loss_mask`` is set."""
        self._check(model)
        keys = digests(batch)
        missing = {key: index for index, key in reversed(list(enumerate(keys))) if key not in self._values}
        if missing:
            # In batch order: the same rows then meet the same micro-batches, whatever was known before.
            self._compute(sorted(missing.values()), keys, batch, model)
        return np.array([self._values[key] for key in keys], np.float32)

    def _check(self, model: ModelHandle) -> None:
        """Once per model: make sure that the values so far are its own, or drop them."""
        if self._model is model:
            return
        probe = probe_batch(model.info.vocab_size, model.info.max_length)
        keys, fresh = digests(probe), completion_logprobs(probe, model)
        stored = np.array([self._values.get(key, np.nan) for key in keys], np.float32)
        if not np.allclose(stored, fresh, rtol=_PROBE_TOLERANCE, atol=0.0):
            if self._values:
                logger.warning(
                    "the reference model gives other log-probs than the cached ones (another model or precision); "
                    "they are computed again"
                )
            if self._file is not None:
                self._file.clear()
            self._values = {}
            self._keep(dict(zip(keys, fresh.tolist(), strict=True)))
        self._model = model

    def _compute(self, which: list[int], keys: list[bytes], batch: SequenceBatch, model: ModelHandle) -> None:
        part = batch if len(which) == len(batch) else batch.select(which)
        values = completion_logprobs(part, model).tolist()
        self._keep(dict(zip([keys[index] for index in which], values, strict=True)))

    def _keep(self, values: dict[bytes, float]) -> None:
        # One record block per forward pass: after a crash a pass is redone as a whole or not at all,
        # so its micro-batches, and with them the last bits, are the same.
        if self._file is not None:
            self._file.append(values)
        self._values.update(values)


def completion_logprobs(batch: SequenceBatch, model: ModelHandle) -> np.ndarray:
    """float32 [B]: ``Σ_t log π(y_t)`` over the tokens where ``loss_mask`` is set, summed in float64."""
    weighted = model.forward(batch)["logprobs"].astype(np.float64) * batch.token_columns["loss_mask"]
    return np.bincount(batch.sequence_ids, weights=weighted, minlength=len(batch)).astype(np.float32)


def digests(batch: SequenceBatch) -> list[bytes]:
    """Per sequence, 16 bytes that identify its token ids and its ``loss_mask``."""
    tokens, mask = batch.tokens, batch.token_columns["loss_mask"]
    spans = (batch.sequence(index) for index in range(len(batch)))
    return [
        hashlib.blake2b(tokens[span].tobytes() + mask[span].tobytes(), digest_size=KEY_BYTES).digest() for span in spans
    ]


def probe_batch(vocab_size: int, max_length: int) -> SequenceBatch:
    """A few fixed sequences on which two models differ; ``max_length`` 0 is no limit."""
    size = (_PROBE_SEQUENCES, min(_PROBE_TOKENS, max_length or _PROBE_TOKENS))
    tokens = np.random.RandomState(0).randint(0, vocab_size, size)  # frozen across numpy versions (NEP 19)
    mask = np.ones(size, np.float32)
    mask[:, 0] = 0.0
    return SequenceBatch.from_lists(list(tokens), token_columns={"loss_mask": list(mask)})
