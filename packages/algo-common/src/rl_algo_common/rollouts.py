"""What algorithms add to rollouts before they train on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rl_core.batch import SequenceBatch

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle


def with_logprobs(batch: SequenceBatch, sources: Mapping[str, ModelHandle], *, temperature: float) -> SequenceBatch:
    """``batch`` with a token column of log-probs per entry of ``sources`` (column → model), a forward pass each."""
    columns = {name: model.forward(batch, temperature=temperature)["logprobs"] for name, model in sources.items()}
    return batch.with_columns(token=columns)
