"""The Megatron backend: models split over tensor, pipeline and data-parallel ranks."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_torch.engine.engine import Engine
from rl_torch.engine.strategy import RoleModel, Strategy
from rl_torch.kernels.installed import chosen

from rl_backend_megatron.build import build_role
from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.role_model import MegatronModel
from rl_backend_megatron.runtime import Runtime

logger = logging.getLogger(__name__)


class MegatronStrategy(Strategy):
    """One rank of a dp × pp × tp grid."""

    name = "megatron"
    world: Runtime

    def __init__(self, config: MegatronConfig, context: WorkerContext) -> None:
        self._config = config
        self.world = Runtime(context, config.parallel)
        self.topology = self.world.topology
        self.width_multiple = config.parallel.tp if config.parallel.sequence else 1
        for kernel in chosen(config.kernels):
            logger.info("kernel %s replaces no layers: those of Megatron Core are used", kernel.name)

    def build(self, role: Role, spec: ModelSpec, optimizer: OptimizerSpec | None) -> MegatronModel:
        """A stage of the model in Megatron's modules."""
        return build_role(role, spec, optimizer, config=self._config, runtime=self.world)

    def base_of(self, model: RoleModel) -> MegatronModel:
        """The same stage, with its adapters switched off in each call."""
        assert isinstance(model, MegatronModel)
        return model.as_base()

    def agree_on_count(self, count: int) -> int:
        """At least one, which a schedule needs; equally many on ranks that exchange tokens for each other's experts."""
        return self.world.maximum(max(1, count), self.world.groups.ep) if self.world.ep_size > 1 else max(1, count)

    def active(self) -> AbstractContextManager[None]:
        """Every call into Megatron runs in this."""
        return self.world.active()


class MegatronBackend(Engine):
    """Implements :class:`rl_core.contracts.backend.Backend`."""

    strategy = MegatronStrategy
