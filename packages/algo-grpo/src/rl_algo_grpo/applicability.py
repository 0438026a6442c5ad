"""Rules for fields that have no effect because of other fields; the config refuses them if they are given."""

from __future__ import annotations

from rl_core.config.applicability import Rule
from rl_core.config.policy_gradient import CONSTANT_LENGTH, ENTROPY_METRIC

RULES = (
    Rule(("clip_low", "clip_high"), lambda c: c.loss != "reinforce", "with loss {c.loss}"),
    Rule(("dual_clip",), lambda c: c.loss == "clip", "with loss {c.loss}", "set loss: clip"),
    CONSTANT_LENGTH,
    Rule(
        ("advantage_scale", "advantage_ddof"),
        lambda c: not c.whitens,
        "with advantage {c.advantage}, which whitens over the batch",
    ),
    Rule(("advantage_ddof",), lambda c: c.whitens or c.advantage_scale != "none", "while advantage_scale is none"),
    Rule(
        ("kl.estimator", "kl.in"),
        lambda c: c.kl.coefficient > 0,
        "while kl.coefficient is 0",
        "set kl.coefficient above 0",
    ),
    ENTROPY_METRIC,
    Rule(
        ("max_resample_rounds",),
        lambda c: c.dynamic_sampling,
        "without dynamic_sampling",
        "set dynamic_sampling: true",
    ),
    Rule(
        ("overlong.max_tokens", "overlong.buffer_tokens"),
        lambda c: c.overlong.mode == "shape",
        "with overlong.mode {c.overlong.mode}",
        "set overlong.mode: shape",
    ),
)
