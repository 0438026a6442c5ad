"""Which fields do something, given the others: one that was set and would do nothing is an error.

A value that comes from the preset is never objected to, so that any field can be overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_core.config.sections import Section

if TYPE_CHECKING:
    from rl_algo_grpo.config import GrpoConfig


@dataclass(frozen=True)
class Rule:
    """``fields`` matter only where ``applies``; ``reason`` and ``remedy`` complete the message (``c``: the config)."""

    fields: tuple[str, ...]
    applies: Callable[[GrpoConfig], bool]
    reason: str
    remedy: str = ""

    def message(self, field: str, config: GrpoConfig) -> str:
        remedy = f"{self.remedy} or remove {field}" if self.remedy else f"remove {field}"
        return f"{field} has no effect {self.reason.format(c=config)}; {remedy}"


RULES = (
    Rule(("clip_low", "clip_high"), lambda c: c.loss != "reinforce", "with loss {c.loss}"),
    Rule(("dual_clip",), lambda c: c.loss == "clip", "with loss {c.loss}", "set loss: clip"),
    Rule(
        ("constant_length",),
        lambda c: c.loss_reduction == "constant",
        "with loss_reduction {c.loss_reduction}",
        "set loss_reduction: constant",
    ),
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
    Rule(
        ("entropy_metric",),
        lambda c: c.entropy_coefficient == 0,
        "with an entropy_coefficient, which logs the entropy anyway",
    ),
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
    Rule(
        ("mismatch.max",),
        lambda c: c.mismatch.correction == "tis",
        "with mismatch.correction {c.mismatch.correction}",
        "set mismatch.correction: tis",
    ),
    Rule(
        ("mismatch.low", "mismatch.high"),
        lambda c: c.mismatch.correction in ("icepop", "seq-mask"),
        "with mismatch.correction {c.mismatch.correction}",
        "set mismatch.correction: icepop or seq-mask",
    ),
    Rule(
        ("mismatch.level",),
        lambda c: c.mismatch.correction in ("tis", "icepop"),
        "with mismatch.correction {c.mismatch.correction}",
        "set mismatch.correction: tis or icepop",
    ),
)


def without_effect(config: GrpoConfig) -> list[str]:
    """One message per field that was given and does nothing."""
    preset = {} if config.preset is None else config.presets[config.preset]
    given = {key for key, value in _given(config) if value is not None and value != _at(preset, key)}
    return [
        rule.message(field, config)
        for rule in RULES
        for field in rule.fields
        if field in given and not rule.applies(config)
    ]


def _given(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of the fields that were set, nested ones as ``kl.estimator``."""
    for name, info in type(section).model_fields.items():
        if name in section.model_fields_set:
            key, value = f"{prefix}{info.alias or name}", getattr(section, name)
            if isinstance(value, Section):
                yield from _given(value, f"{key}.")
            else:
                yield key, value


def _at(preset: Mapping[str, Any], key: str) -> Any:
    value: Any = preset
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
