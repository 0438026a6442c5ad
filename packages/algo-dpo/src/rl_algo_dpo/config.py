"""Config of direct preference optimization and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from rl_algo_common.applicability import Rule, field_without_effect, refuse
from rl_algo_common.config import RowsConfig
from rl_core.config.paths import ModelPath
from rl_core.config.sections import Section
from rl_core.contracts.algorithm import BatchPlan

LossName = Literal["sigmoid", "robust", "ipo", "hinge", "simpo", "orpo", "kto"]


READ_BY: Mapping[str, tuple[LossName, ...]] = {
    "beta": ("sigmoid", "robust", "ipo", "hinge", "simpo", "kto"),
    "label_smoothing": ("sigmoid", "robust"),
    "target_margin": ("simpo",),
    "orpo_lambda": ("orpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "sft_coefficient": ("sigmoid", "robust", "ipo", "hinge", "simpo"),
    "reference": ("sigmoid", "robust", "ipo", "hinge", "kto"),
}
"""Field → the losses that read it."""


def _read_by(*losses: LossName) -> Callable[[Any], bool]:
    return lambda config: config.loss in losses


class ReferenceConfig(Section):
    """Source of the frozen reference model."""

    path: ModelPath = Field(description="Hugging Face folder or hub id; its tokens must be the policy's.")


class DpoConfig(RowsConfig):
    """Preference learning: one optimizer step per training step, on ``pairs_per_step`` rows.

    A field that the chosen loss does not read is refused. Fields whose default depends on the loss
    are None here; :meth:`loss_options` has their values.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cdpo": {"loss": "sigmoid", "beta": 0.1, "label_smoothing": 0.1},
        "ipo": {"loss": "ipo", "beta": 0.1},
        "simpo": {"loss": "simpo", "beta": 2.0, "target_margin": 1.0, "learning_rate": 6e-7},
        "orpo": {"loss": "orpo", "orpo_lambda": 0.1, "learning_rate": 8e-6},
        "kto": {"loss": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    }

    defaults: ClassVar[Mapping[LossName, Mapping[str, float]]] = {
        "sigmoid": {"beta": 0.1, "label_smoothing": 0.0},
        "robust": {"beta": 0.1, "label_smoothing": 0.0},
        "ipo": {"beta": 0.1},
        "hinge": {"beta": 0.1},
        "simpo": {"beta": 2.0, "target_margin": 1.0},
        "orpo": {"orpo_lambda": 0.1},
        "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    }
    """Loss → the numbers it is made of, with the value each has unless the user gives one."""

    rules: ClassVar[tuple[Rule, ...]] = tuple(
        Rule((name,), _read_by(*losses), "with loss {c.loss}", f"remove it, or set loss to {' or '.join(losses)}")
        for name, losses in READ_BY.items()
    )

    learning_rate: float = Field(5e-7, ge=0, description="Peak learning rate.")
    loss: LossName = Field("sigmoid", description="What is minimised; sigmoid is DPO, cDPO with label_smoothing.")
    beta: float | None = Field(
        None,
        gt=0,
        description="Strength: larger stays closer to the reference (simpo: scales the reward). "
        "Default: 0.1, for simpo 2.0.",
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="Assumed share of pairs whose completions are swapped, for sigmoid (cDPO; default 0) and robust.",
    )
    target_margin: float | None = Field(
        None, ge=0, description="γ of simpo, the margin asked of the reward difference. Default: 1.0."
    )
    orpo_lambda: float | None = Field(
        None, gt=0, description="λ of orpo, the weight of the odds-ratio term. Default: 0.1."
    )
    desirable_weight: float | None = Field(
        None, gt=0, description="λ_D of kto, the weight of desirable completions. Default: 1."
    )
    undesirable_weight: float | None = Field(
        None, gt=0, description="λ_U of kto, the weight of undesirable completions. Default: 1."
    )
    sft_coefficient: float = Field(
        0.0, ge=0, description="α, the weight of the chosen completion's token-mean negative log-likelihood."
    )
    reference: ReferenceConfig | None = Field(
        None, description="Frozen reference model; default: the policy as it starts."
    )
    pairs_per_step: int = Field(
        64, ge=1, description="Data rows in one optimizer step, over all ranks: pairs, or labelled completions (kto)."
    )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a frozen reference model."""
        return self.loss in READ_BY["reference"]

    def loss_options(self) -> dict[str, float]:
        """The numbers the chosen loss is made of, given or default."""
        values = {name: getattr(self, name) for name in self.defaults[self.loss]}
        return {name: self.defaults[self.loss][name] if value is None else value for name, value in values.items()}

    def plan(self) -> BatchPlan:
        """The batch plan of one training step."""
        numbers = ", ".join(f"{name} {value:g}" for name, value in self.loss_options().items())
        reference = "no reference model"
        if self.needs_reference:
            reference = f"reference model {self.reference.path if self.reference else 'as the policy starts'}"
        return BatchPlan(
            input="examples",
            rows_per_step=self.pairs_per_step,
            notes=(f"loss {self.loss} with {numbers}; {reference}",),
        )

    @field_validator(*READ_BY)
    @classmethod
    def _loss_reads_it(cls, value: Any, info: ValidationInfo) -> Any:
        if value and "loss" in info.data:
            refuse(field_without_effect(info, cls.rules))
        return value

    @field_validator("label_smoothing")
    @classmethod
    def _robust_knows_the_noise(cls, value: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("loss") == "robust" and not value:
            raise ValueError(
                "loss robust needs label_smoothing above 0, the share of swapped pairs; without any it is loss sigmoid"
            )
        return value

    @field_validator("pairs_per_step")
    @classmethod
    def _kto_compares_rows(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("loss") == "kto" and value < 2:
            raise ValueError(
                "loss kto needs pairs_per_step of at least 2, because it joins prompts to the completions of other rows"
            )
        return value
