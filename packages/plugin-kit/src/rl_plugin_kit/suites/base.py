"""Shared parts of the suites of all kinds: finding and building the component, and the rules every component keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rl_core.discovery.lookup import ComponentNotFound
from rl_core.discovery.references import install_command
from rl_core.discovery.registry import Registered, Registry, load_registry
from rl_core.errors import EnvironmentProblem

from rl_plugin_kit.near_misses import near_misses
from rl_plugin_kit.ray_worker import check_arrival
from rl_plugin_kit.tiny_run import CannotRun, check_tiny_run


class ComponentConformance:
    """Base of the suites; each kind has its own (see :mod:`rl_plugin_kit.suites`).

    Attributes:
        component: the component's name, or ``distribution/name``.
        fields: values for its config, as they would stand in the YAML; those without a default must be there.
        contracts, optional: of the kind: Protocols whose methods core calls, and names of further methods.
        sections: further sections of the config of the tiny run, e.g. ``{"backend": {"name": "mine"}}``; the run
            is put together from what is installed, and these win.
    """

    kind: ClassVar[str] = ""
    contracts: ClassVar[tuple[type, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    component: ClassVar[str] = ""
    fields: ClassVar[Mapping[str, Any]] = {}
    sections: ClassVar[Mapping[str, Any]] = {}

    def test_a_ray_worker_receives_its_config_and_builds_it(self) -> None:
        check_arrival([(self.label, self.registered().component, self.config())])

    def test_a_tiny_run_continues_exactly_where_it_stopped(self, tmp_path: Path) -> None:
        self.config()
        section = {"name": self.component, **self.fields}
        try:
            check_tiny_run(self.label, self.kind, section, self.sections, tmp_path)
        except CannotRun as reason:
            raise AssertionError(f"{self.label}: {reason}") from reason

    def test_no_method_has_almost_the_name_of_one_that_is_called(self) -> None:
        built = self._class()
        for method, called in near_misses(built, self.contracts, self.optional):
            self.expect(
                False, f"{built.__name__}.{method} is never called, {called} would be; rename it, or begin it with _"
            )

    @cached_property
    def registry(self) -> Registry:
        """The installed components."""
        return load_registry()

    @property
    def label(self) -> str:
        """For messages: ``reward 'brevity'``."""
        return f"{self.kind.replace('_', ' ')} {self.component!r}"

    def expect(self, holds: object, otherwise: str) -> None:
        """Fail with a message that names the component."""
        if not holds:
            raise AssertionError(f"{self.label}: {otherwise}")

    def registered(self) -> Registered:
        """The installed component; the test is skipped where a module that it needs is not installed."""
        try:
            found = self.registry.find(self.kind, self.component)
        except ComponentNotFound as error:
            raise AssertionError(f"{type(self).__name__}.component: {error}") from error
        missing = self.registry.missing_imports(found.component)
        if missing:
            commands = ", ".join(install_command(name, package=found.package) for name in missing)
            pytest.skip(f"{self.label} needs {', '.join(missing)}, not installed here: {commands}")
        return found

    def config_model(self) -> Any:
        """The config's pydantic model."""
        return self._resolve(self.registered().component.config)

    def config(self, **more: Any) -> Any:
        """The validated config of ``fields``, with ``more`` on top; skipped where fields without a default lack."""
        model = self.config_model()
        given = {**self.fields, **more}
        required = {f.alias or name for name, f in model.model_fields.items() if f.is_required()}
        lacking = sorted(required - {"name", *given})
        if lacking:
            pytest.skip(
                f"{self.label} has fields without a default: {', '.join(lacking)}; give them in the suite's "
                "`fields`, or with --set on the command line"
            )
        try:
            return model(name=self._name, **given)
        except ValueError as error:
            raise AssertionError(f"{self.label}: fields {dict(given)} are not a valid config: {error}") from error

    def build(self, **more: Any) -> Any:
        """A new instance, with ``more`` on top of ``fields``."""
        return self._resolve(self.registered().component.factory)(self.config(**more))

    def check_metrics(self, metrics: Any, where: str) -> None:
        """Flat, finite numbers under names with a section."""
        self.expect(isinstance(metrics, Mapping), f"{where} returned {type(metrics).__name__}, not a dict of metrics")
        for name, value in metrics.items():
            self.expect(
                isinstance(name, str) and "/" in name,
                f"{where} returned a metric named {name!r}; names have a section, e.g. 'train/loss'",
            )
            self.expect(
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
                f"{where} returned {value!r} for the metric {name!r}, not a finite number",
            )

    def _class(self) -> type:
        """Of the component; one whose factory is a class is not built, which may be costly."""
        if type(self).build is ComponentConformance.build:
            factory = self._resolve(self.registered().component.factory)
            if isinstance(factory, type):
                return factory
        return type(self.build())

    @property
    def _name(self) -> str:
        return self.component.rpartition("/")[2]

    def _resolve(self, reference: str) -> Any:
        try:
            return self.registry.resolve(reference)
        except EnvironmentProblem as error:
            raise AssertionError(f"{self.label}: {error}") from error
