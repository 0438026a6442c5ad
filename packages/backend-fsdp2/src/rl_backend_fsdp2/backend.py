"""The FSDP2 backend: models sharded over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_torch.engine.engine import Engine
from rl_torch.engine.strategy import RoleModel, Strategy

from rl_backend_fsdp2.build import build_role
from rl_backend_fsdp2.mesh import Mesh, Sizes
from rl_backend_fsdp2.model import Fsdp2Model

if TYPE_CHECKING:  # what computes needs no pydantic: it runs wherever PyTorch and transformers do
    from rl_backend_fsdp2.config import Fsdp2Config


class Fsdp2Strategy(Strategy):
    """One rank of a replicate × dp × cp × tp mesh."""

    name = "fsdp2"
    world: Mesh

    def __init__(self, config: Fsdp2Config, context: WorkerContext) -> None:
        parallel = config.parallel
        others = parallel.replicate * parallel.cp * parallel.tp
        dp = parallel.dp or max(1, context.world_size // others)
        self._config = config
        self.world = Mesh(context, Sizes(replicate=parallel.replicate, dp=dp, cp=parallel.cp, tp=parallel.tp))
        self.topology = self.world.topology
        self.scales_loss = config.precision == "fp16"
        self.width_multiple = 2 * parallel.cp if parallel.cp > 1 else 1
        if parallel.sequence:
            self.width_multiple *= parallel.tp

    def build(self, role: Role, spec: ModelSpec, optimizer: OptimizerSpec | None) -> Fsdp2Model:
        """Read, adapted, split, sharded; trained weights are float32."""
        return build_role(role, spec, optimizer, config=self._config, mesh=self.world)

    def base_of(self, model: RoleModel) -> Fsdp2Model:
        """The same parameters, with the adapter switched off in each call."""
        assert isinstance(model, Fsdp2Model)
        return model.as_base()


class Fsdp2Backend(Engine):
    """Implements :class:`rl_core.contracts.backend.Backend`."""

    strategy = Fsdp2Strategy
