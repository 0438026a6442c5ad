"""The published variants, as field values.

A preset holds what makes the method: advantages, loss, reduction, KL term, clip range. Sizes
(``prompts_per_step``, ``group_size``, ``minibatches``), learning rates and lengths belong to the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GROUP_STD = {"advantage": "group", "advantage_scale": "std"}
_CLIP = {"loss": "clip", "clip_low": 0.2, "clip_high": 0.2}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Shao et al. 2024, DeepSeekMath, eq. 3 and section 4.2.
    "grpo": {
        **_GROUP_STD,
        **_CLIP,
        "loss_reduction": "sequence",
        "kl": {"in": "loss", "coefficient": 0.04, "estimator": "k3"},
    },
    # Liu et al. 2025, "Understanding R1-Zero-like training"; no KL term.
    "dr_grpo": {"advantage": "group", "advantage_scale": "none", **_CLIP, "loss_reduction": "constant"},
    # Yu et al. 2025, DAPO, eq. 8 and 13; no KL term.
    "dapo": {
        **_GROUP_STD,
        **_CLIP,
        "clip_high": 0.28,
        "loss_reduction": "token",
        "dynamic_sampling": True,
        "overlong": {"mode": "shape"},
    },
    # Zheng et al. 2025, GSPO, section 5.1.
    "gspo": {**_GROUP_STD, "loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "loss_reduction": "sequence"},
    # Chen et al. 2025, MiniMax-M1, eq. 4: no lower bound and no number for the upper one, which is that
    # of Khatri et al. 2025, ScaleRL: ρ ≤ 5.
    "cispo": {**_GROUP_STD, "loss": "cispo", "clip_low": 1.0, "clip_high": 4.0, "loss_reduction": "token"},
    # Ahmadian et al. 2024, "Back to basics": a completion is one action, so log-probs are summed, not averaged.
    "rloo": {
        "advantage": "rloo",
        "advantage_scale": "none",
        "loss": "reinforce",
        "loss_reduction": "constant",
        "constant_length": 1,
        "kl": {"in": "reward", "coefficient": 0.03, "estimator": "k1"},
    },
    # Hu et al. 2025, REINFORCE++.
    "reinforce++": {
        "advantage": "reinforce++",
        **_CLIP,
        "loss_reduction": "token",
        "kl": {"in": "reward", "coefficient": 0.01, "estimator": "k1"},
    },
    "reinforce++-baseline": {
        "advantage": "reinforce++-baseline",
        **_CLIP,
        "loss_reduction": "token",
        "kl": {"in": "loss", "coefficient": 0.001, "estimator": "k2"},
    },
}
