"""What the algorithm makes of a step's batch, with what is counted and what is kept when it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_core.errors import RLError
from rl_core.model import NonFiniteBatch

if TYPE_CHECKING:
    from rl_core.contracts.algorithm import Algorithm

logger = logging.getLogger("rl")


def algorithm_step(
    algorithm: Algorithm, batch: SequenceBatch, models: Mapping[str, Any], *, stage: str, step: int, directory: Path
) -> dict[str, float]:
    """The metrics of ``algorithm.step(batch, models)``, and how much it trained on in which time.

    Args:
        directory: of the run; a batch whose loss is not finite is saved in its ``failed/``.

    Raises:
        RLError: the loss was not finite, and the batch is saved; or whatever the algorithm raised.
    """
    if not len(batch):
        logger.warning("%s: step %d has nothing to train on; the weights stay as they are", stage, step)
        return {"train/tokens": 0.0, "train/loss_tokens": 0.0, "train/sequences": 0.0, "time/train_s": 0.0}
    started = time.perf_counter()
    try:
        metrics = algorithm.step(batch, models)
    except NonFiniteBatch as error:
        path = save_batch(directory / "failed" / f"{stage}-step-{step:06d}.npz", error.batch)
        raise RLError(
            f"stage {stage!r}, step {step}: {error}\n"
            f"    the batch is saved for inspection in {path}\n"
            "    try a lower algorithm.learning_rate, or continue from the last checkpoint with `rl resume`"
        ) from error
    took = time.perf_counter() - started
    return metrics | {
        "train/tokens": float(len(batch.tokens)),
        "train/loss_tokens": Scale.of(batch).tokens,
        "train/sequences": float(len(batch)),
        "train/tokens_per_second": len(batch.tokens) / max(took, 1e-9),
        "time/train_s": took,
    }


def save_batch(path: Path, batch: SequenceBatch) -> Path:
    """Write a batch as ``.npz`` (``tokens``, ``offsets``, ``token.NAME``, ``sequence.NAME``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"tokens": batch.tokens, "offsets": batch.offsets}
    arrays |= {f"token.{name}": column for name, column in batch.token_columns.items()}
    arrays |= {f"sequence.{name}": column for name, column in batch.sequence_columns.items()}
    np.savez(path, **arrays)
    return path
