"""The section ``model.adapter``."""

from __future__ import annotations

from pydantic import Field, model_validator

from rl_core.config.section import Section
from rl_core.contracts.model import AdapterKind, AdapterSpec


class AdapterConfig(Section):
    """Low-rank matrices that are trained in place of the model's own weights."""

    name: AdapterKind = Field(description="lora, dora (trained row norms as well) or adalora (ranks are pruned).")
    rank: int = Field(16, ge=1, description="Rank of the matrices; for adalora the average rank left at the end.")
    alpha: float | None = Field(
        None, gt=0, description="The matrices' product is multiplied by alpha / rank; default: 2 × rank."
    )
    target_modules: tuple[str, ...] = Field(
        (),
        description="Linear layers that get one, by names or ends of names: [q_proj, mlp.down_proj]; default: all in "
        "the decoder blocks but routers. Experts that are fused into one parameter get none.",
    )
    initial_rank: int | None = Field(None, ge=1, description="adalora: rank at the start; default: 1.5 × rank.")
    prune_from_step: int | None = Field(
        None, ge=0, description="adalora: optimizer step from which ranks are pruned; default: 1/10 of all steps."
    )
    prune_to_step: int | None = Field(
        None, ge=1, description="adalora: optimizer step after which ranks stay; default: 7/10 of all steps."
    )
    prune_every: int | None = Field(
        None, ge=1, description="adalora: optimizer steps between prunings; default: 1/100 of all steps, at least 1."
    )
    orthogonality: float | None = Field(
        None, ge=0, description="adalora: weight of the penalty on matrices that are not orthogonal; default: 0.5."
    )

    @model_validator(mode="after")
    def _only_what_acts(self) -> AdapterConfig:
        only = ("initial_rank", "prune_from_step", "prune_to_step", "prune_every", "orthogonality")
        if self.name != "adalora" and (odd := [key for key in only if getattr(self, key) is not None]):
            raise ValueError(f"{odd[0]} has no effect with {self.name}; use name: adalora or remove {odd[0]}")
        if self.initial_rank is not None and self.initial_rank < self.rank:
            raise ValueError(f"initial_rank {self.initial_rank} is less than rank {self.rank}, where pruning ends")
        return self

    def spec(self, optimizer_steps: int, *, seed: int) -> AdapterSpec:
        """The value a backend is given; ``optimizer_steps`` is the length of the whole training."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        if self.name != "adalora":
            return AdapterSpec(self.name, self.rank, alpha, self.target_modules, seed=seed)

        def default(value: int | None, fallback: int) -> int:
            return fallback if value is None else value

        return AdapterSpec(
            self.name,
            self.rank,
            alpha,
            self.target_modules,
            initial_rank=default(self.initial_rank, (3 * self.rank + 1) // 2),
            prune_from_step=default(self.prune_from_step, optimizer_steps // 10),
            prune_to_step=default(self.prune_to_step, max(1, optimizer_steps * 7 // 10)),
            prune_every=default(self.prune_every, max(1, optimizer_steps // 100)),
            orthogonality=0.5 if self.orthogonality is None else self.orthogonality,
            seed=seed,
        )
