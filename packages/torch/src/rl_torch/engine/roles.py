"""What the engine keeps of a loaded role."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl_core.contracts.model import AdapterSpec, OptimizerSpec, Role

from rl_torch.engine.loss_scale import LossScale
from rl_torch.engine.strategy import RoleModel
from rl_torch.shards import BackgroundWrite


@dataclass
class LoadedRole:
    """A role on this rank.

    Attributes:
        adapter: what is trained in place of the model's own weights.
        optimizer: None for frozen roles.
        steps: optimizer steps taken.
        loss_scale: for float16.
        saving: checkpoint writes that are still going on.
    """

    role: Role
    model: RoleModel
    adapter: AdapterSpec | None = None
    optimizer: OptimizerSpec | None = None
    steps: int = 0
    loss_scale: LossScale | None = None
    saving: list[BackgroundWrite] = field(default_factory=list)

    @property
    def is_saving(self) -> bool:
        """Whether this rank still writes in the background."""
        return any(write.is_running for write in self.saving)

    def finish_saving(self) -> None:
        """Wait for background writes; raises what they raised."""
        while self.saving:
            self.saving.pop().finish()
