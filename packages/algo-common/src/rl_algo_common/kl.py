"""The KL between two policies from log-probs of sampled tokens: one formula for numpy arrays and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from rl_core.batch import SequenceBatch

if TYPE_CHECKING:
    from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
Values = TypeVar("Values", np.ndarray, "Tensor")

LARGEST_EXPONENT = 20.0
"""Log-ratios are held within ± this before ``exp``, so that a token far off the policy gives a large number instead
of infinity."""


def kl_estimate(d: Values, estimator: KlEstimator) -> Values:
    """KL from samples of the first distribution (Schulman 2020, "Approximating KL divergence").

    With d = log q - log p at samples of p: ``k1 = -d``, ``k2 = d²/2``, ``k3 = e^d - 1 - d``.

    Args:
        d: float, log-prob of the second distribution minus that of the first; held within ±20.

    Returns:
        of d's kind, shape and dtype, with d's gradient.
    """
    d = d.clip(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    return _expm1(d) - d


def kl_to_reference(batch: SequenceBatch, estimator: KlEstimator) -> np.ndarray:
    """float64 [T]: KL(π_old ‖ π_ref) of every token of a completion, 0 where ``loss_mask`` is.

    Args:
        batch: token columns ``loss_mask``, ``old_logprobs`` and ``ref_logprobs``.
    """
    columns = batch.token_columns
    d = np.where(columns["loss_mask"] != 0, columns["ref_logprobs"] - columns["old_logprobs"], 0.0)
    return kl_estimate(d.astype(np.float64), estimator)


def _expm1(d: Any) -> Any:
    return np.expm1(d) if isinstance(d, np.ndarray) else d.expm1()
