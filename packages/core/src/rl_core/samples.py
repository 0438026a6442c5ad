"""Finished completions as what loggers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_core.batch import SequenceBatch
from rl_core.contracts.reward import Sample


def completion_tokens(batch: SequenceBatch) -> np.ndarray:
    """int64 [B]: tokens that the model wrote."""
    written = batch.lengths - batch.sequence_columns["prompt_length"]
    read = batch.sequence_columns.get("environment_tokens")
    return written if read is None else written - read


def sample_rows(samples: Sequence[Sample], rewards: np.ndarray) -> list[dict[str, Any]]:
    """Samples as plain rows for loggers; of a conversation the completion is all that was said, role by role."""
    return [
        {
            "prompt": s.prompt,
            "completion": "\n".join(f"{m['role']}: {m['content']}" for m in s.messages) or s.completion,
            "answer": s.row.get("answer"),
            "reward": float(r),
            **({"messages": [dict(m) for m in s.messages]} if s.messages else {}),
        }
        for s, r in zip(samples, rewards, strict=False)
    ]
