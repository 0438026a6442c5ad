"""A stage's sections → the job that backends rate and estimate memory for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_core.config.document import plain
from rl_core.config.select import Selected, describe_error
from rl_core.contracts.model import Role
from rl_core.contracts.rating import BackendJob, JobRole
from rl_core.machine import Machine
from rl_huggingface.model_shape import FoundShape, shape_at, shape_of_model

if TYPE_CHECKING:
    from rl_core.config.run_section import RunSection
    from rl_core.config.sections import ModelConfig
    from rl_core.contracts.algorithm import BatchPlan
    from rl_core.discovery.registry import Registry

Exports = Mapping[str, FoundShape]
"""Folder that an earlier stage will export to → the shape of what it will hold."""


def stage_shape(selected: Selected, exports: Exports) -> FoundShape:
    """The shape of the stage's model, and so of its export."""
    if selected.model is None:
        return FoundShape(None, unknown="the section 'model' is not valid")
    return shape_of_model(selected.model, _config(selected, "tokenizer"), exports=exports)


def backend_job(selected: Selected, registry: Registry, exports: Exports, machine: Machine) -> BackendJob | None:
    """The job of a stage; None where its model, run or algorithm is missing or not valid."""
    algorithm: Any = _config(selected, "algorithm")
    model, run = selected.model, selected.run
    if model is None or run is None or algorithm is None:
        return None
    found, notes = stage_shape(selected, exports), []
    try:
        plan: BatchPlan | None = algorithm.plan()
        roles: Sequence[Role] = _roles(selected, registry)
    except Exception as error:  # noqa: BLE001 - the plugin boundary; the check of the algorithm itself reports it
        plan, roles = None, (Role("policy", trainable=True),)
        notes.append(f"one trained model is assumed: the algorithm's are unknown ({describe_error(error)})")
    shapes = [found if role.path is None else shape_at(role.path, exports=exports) for role in roles]
    notes += dict.fromkeys(shape.note for shape in shapes if shape.note)
    section = selected.nodes["backend"]
    given = plain(section) if isinstance(section.value, dict) else {}
    here = run.address is None
    return BackendJob(
        algorithm=selected.selections["algorithm"][0].registered.component.name,  # type: ignore[union-attr]
        roles=_with_shapes(roles, shapes, adapted=model.adapter is not None),
        gpus=run.gpus,
        nodes=run.nodes,
        max_length=model.max_length,
        input=plan.input if plan else None,
        tokens_per_step=_tokens(plan, model),
        gpu_memory_bytes=machine.gpu_memory_bytes if here and run.gpus else None,
        host_memory_bytes=machine.host_memory_bytes if here else None,
        adapter=_adapter(model, run, plan),
        given={key: value for key, value in given.items() if key != "name"},
        notes=tuple(notes),
    )


def _roles(selected: Selected, registry: Registry) -> Sequence[Role]:
    choice = selected.selections["algorithm"][0]
    assert choice.registered is not None
    factory: Any = registry.resolve(choice.registered.component.factory)
    roles = tuple(factory(choice.config).roles())
    if not any(role.trainable for role in roles):
        raise ValueError("no role is trainable")
    return roles


def _with_shapes(roles: Sequence[Role], shapes: Sequence[FoundShape], *, adapted: bool) -> tuple[JobRole, ...]:
    """With an adapter, a frozen copy of the trained model is that model with the adapter off, as in the run."""
    policy = next(role.name for role in roles if role.trainable)
    placed = []
    for role, found in zip(roles, shapes, strict=True):
        if adapted and not role.trainable and role.path is None and role.head == "lm":
            role = Role(role.name, trainable=False, head=role.head, base_of=policy)
        placed.append(JobRole(role, found.shape, found.unknown))
    return tuple(placed)


def _tokens(plan: BatchPlan | None, model: ModelConfig) -> int | None:
    """Rollouts have one sequence per completion. What an example becomes (one sequence, or a pair) is not known."""
    if plan is None or plan.input == "examples":
        return None
    sequences = plan.rows_per_step * plan.group_size
    return -(-sequences // max(1, plan.optimizer_steps)) * model.max_length


def _adapter(model: ModelConfig, run: RunSection, plan: BatchPlan | None) -> Any:
    if model.adapter is None:
        return None
    return model.adapter.spec(run.steps * (plan.optimizer_steps if plan else 1), seed=run.seed)


def _config(selected: Selected, section: str) -> Any:
    group = selected.selections.get(section)
    return group[0].config if group else None
