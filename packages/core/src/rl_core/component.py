"""A component: a named implementation of one kind, described without importing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KINDS = (
    "algorithm",
    "backend",
    "generator",
    "rollout",
    "tokenizer",
    "data_source",
    "reward",
    "environment",
    "evaluator",
    "logger",
)
"""Every kind of component, in the order they are listed to the user."""

SECTIONS = (
    "algorithm",
    "backend",
    "generator",
    "rollout",
    "environment",
    "tokenizer",
    "data",
    "eval_data",
    "rewards",
    "evaluators",
    "loggers",
)
"""The config sections that name components (``Component.needs`` draws from these)."""


@dataclass(frozen=True)
class Component:
    """One implementation a config can select with ``name: …``.

    Attributes:
        kind: one of :data:`KINDS`.
        name: what the user writes in the YAML; unique within its kind.
        factory: ``"package.module:Class"``. Imported only when a config selects the component,
            then called as ``Class(config)`` with the validated config model.
        config: ``"package.config:Model"``, a pydantic model that derives from
            :class:`rl_core.config.sections.ComponentConfig`. Imported for ``rl check`` and
            ``rl schema``; it must import neither torch nor transformers.
        summary: one line for ``rl plugins``.
        needs: config sections this component cannot work without, e.g. ``("generator", "rewards")``.
            ``rl check`` refuses a config that lacks one.
        uses: further sections it reads when they are there. A section that no selected component
            needs or uses is refused, because nothing would read it.
        imports: top-level modules that must be importable for it to run, e.g. ``("torch", "peft")``;
            checked (not imported) before anything starts.
        memory_estimate: of a backend, optional: ``"package.module:function"``, called as ``function(config, job)``
            with a :class:`rl_core.contracts.rating.BackendJob` for ``rl check``. It returns the
            :class:`rl_core.contracts.rating.MemoryEstimate` of a rank, or None where it cannot tell. Its module
            must import neither torch nor transformers. A failure is shown as a warning.
    """

    kind: str
    name: str
    factory: str
    config: str
    summary: str
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    memory_estimate: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"component {self.name!r}: unknown kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        references = {"factory": self.factory, "config": self.config}
        if self.memory_estimate:
            references["memory_estimate"] = self.memory_estimate
        for label, reference in references.items():
            module, _, attribute = reference.partition(":")
            if not module or not attribute:
                raise ValueError(f"{self.kind} {self.name!r}: {label} must be 'package.module:Name', got {reference!r}")
        for section in (*self.needs, *self.uses):
            if section not in SECTIONS:
                raise ValueError(
                    f"{self.kind} {self.name!r}: unknown section {section!r} in needs/uses; "
                    f"choose from {', '.join(SECTIONS)}"
                )


@dataclass(frozen=True)
class ComponentChoice:
    """A component that a config selected.

    Attributes:
        kind: one of :data:`KINDS`.
        name: its name.
        component: its description; ``registry.resolve(component.factory)(config)`` builds it.
        package: the distribution it comes from.
        config: its validated config, an instance of the model that ``component.config`` names.
    """

    kind: str
    name: str
    component: Component
    package: str
    config: Any
