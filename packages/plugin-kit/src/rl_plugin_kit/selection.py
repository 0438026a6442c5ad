"""Putting the config of a tiny run together from what is installed, around one component under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_core.component import Component
from rl_core.config.select import KIND_OF
from rl_core.contracts.algorithm import Algorithm
from rl_core.contracts.data import Row
from rl_core.discovery.lookup import published
from rl_core.discovery.registry import Registry, load_registry
from rl_core.errors import RLError

from rl_plugin_kit.letters import LetterTokenizer
from rl_plugin_kit.rows import questions, write_questions

MODEL = {
    "init": {"architecture": "qwen2", "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 64},
    "max_length": 512,
}
MAX_NEW_TOKENS = 4
STEPS = 2
PUBLISHED = {"examples": "sft", "rollouts": "grpo"}
"""What an algorithm learns from → a published one, for messages."""


class CannotRun(Exception):
    """A run needs a component of a kind of which none is installed; says which and what to install."""


def sections_for(
    kind: str, section: Mapping[str, Any], folder: Path, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The sections of a run that uses ``section``, all but ``run``.

    Args:
        kind: of the component that ``section`` selects.
        section: as in the YAML.
        folder: for a file with rows.
        more: further sections; those are not looked for.

    Raises:
        CannotRun: nothing that is installed fits a section that the run needs.
    """
    chooser = _Chooser(load_registry(), folder)
    own = {"data_source": "data", "reward": "rewards", "evaluator": "evaluators", "logger": "loggers"}.get(kind, kind)
    chosen: dict[str, Any] = {"model": MODEL, **(more or {}), own: section}
    chosen.pop("run", None)
    needs: set[str] = set()
    if "algorithm" not in chosen:
        if kind == "evaluator":
            needs |= set(chooser.component(kind, str(section["name"])).needs)
        rollouts = kind in ("generator", "rollout", "reward", "environment") or bool(needs & {"generator", "rewards"})
        rows = chooser.rows(section) if kind == "data_source" else questions()
        chosen["algorithm"] = chooser.algorithm(rollouts=rollouts, rows=rows)
    algorithm = chooser.component("algorithm", str(chosen["algorithm"]["name"]))
    chooser.count = max(chooser.count, STEPS * chooser.rows_per_step(chosen["algorithm"]))
    needs |= set(algorithm.needs) | {"data", "tokenizer", "backend"} | ({"eval_data"} if kind == "evaluator" else set())
    for name in sorted(needs - set(chosen)):
        chosen[name] = chooser.section(name)
    for name in ("rewards", "evaluators", "loggers"):
        if isinstance(chosen.get(name), Mapping):
            chosen[name] = [chosen[name]]
    if "generator" in chosen:
        chosen["generator"] = {"max_new_tokens": MAX_NEW_TOKENS, **chosen["generator"]}
    return {
        name: [dict(one) for one in value] if isinstance(value, list) else dict(value) for name, value in chosen.items()
    }


class _Chooser:
    """Finds an installed component for a section, by trying it."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self.count = len(questions())
        """Rows to write: the steps of a run have none in common."""

    def component(self, kind: str, name: str) -> Component:
        return self._registry.find(kind, name).component

    def rows(self, section: Mapping[str, Any]) -> Sequence[Row]:
        """Those of a section ``data``."""
        component = self.component("data_source", str(section["name"]))
        config = self._registry.resolve(component.config)(**{**section, "name": component.name})
        return self._registry.resolve(component.factory)(config).load()

    def algorithm(self, *, rollouts: bool, rows: Sequence[Row]) -> dict[str, Any]:
        """One that learns from rollouts, or from examples such as ``rows``."""
        wanted = "rollouts" if rollouts else "examples"
        others = False
        for name, config in self._buildable("algorithm", [{}]):
            built = self._built_algorithm({"name": name, **config})
            if built.plan().input == wanted:
                if rollouts or _encodes(built, rows[0]):
                    return {"name": name, **config}
                others = True
        if others and "prompt" in rows[0]:  # it has no completions: they are sampled
            return self.algorithm(rollouts=True, rows=rows)
        if others:
            columns = ", ".join(sorted(set(rows[0]) - {"__where__"}))
            raise CannotRun(
                f"a tiny run needs an algorithm that learns from rows with {columns}, and no installed one does: "
                "name one in the suite's `sections`"
            )
        raise CannotRun(
            f"a tiny run needs an algorithm that learns from {wanted}, and none is installed: "
            f"pip install {published()['algorithm'][PUBLISHED[wanted]]}"
        )

    def rows_per_step(self, section: Mapping[str, Any]) -> int:
        """Of an algorithm."""
        return self._built_algorithm(section).plan().rows_per_step

    def _built_algorithm(self, section: Mapping[str, Any]) -> Algorithm:
        name = str(section["name"])
        component = self.component("algorithm", name)
        config = self._registry.resolve(component.config)(**{**section, "name": component.name})
        return self._registry.resolve(component.factory)(config)

    def section(self, section: str) -> dict[str, Any]:
        kind = KIND_OF[section]
        options: Sequence[Mapping[str, Any]] = [{}]
        if kind == "data_source":
            path = write_questions(self._folder / "rows.jsonl", self.count)
            options = [{"path": str(path)}, {"function": "rl_plugin_kit.rows:questions"}, {}]
        for name, config in self._buildable(kind, options):
            if self._works(kind, name, config):
                return {"name": name, **config}
        raise CannotRun(
            f"a tiny run needs a {kind.replace('_', ' ')}, and none that fits is installed{_packages(kind)}"
        )

    def _works(self, kind: str, name: str, config: Mapping[str, Any]) -> bool:
        """Whether it takes the kit's rows; for other kinds, whether it has what it needs."""
        if kind not in ("data_source", "tokenizer"):
            return True
        built: Any = self._registry.resolve(self.component(kind, name).factory)(
            self._model(kind, name)(name=name, **config)
        )
        try:
            if kind == "tokenizer":
                built.load(None, questions())
                return True
            rows = built.load()
        except (RLError, OSError, ValueError):
            return False
        return bool(len(rows)) and {"prompt", "answer", "chosen"} <= set(rows[0])

    def _buildable(self, kind: str, options: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Components whose modules are installed, each with the first of ``options`` that its config takes."""
        for registered in self._registry.components(kind):
            component = registered.component
            if self._registry.missing_imports(component):
                continue
            for fields in options:
                try:
                    self._model(kind, component.name)(name=component.name, **fields)
                except ValueError:
                    continue
                yield component.name, fields
                break

    def _model(self, kind: str, name: str) -> Any:
        return self._registry.resolve(self.component(kind, name).config)


def _encodes(algorithm: Algorithm, row: Row) -> bool:
    try:
        return len(algorithm.encode([row], LetterTokenizer())) > 0
    except RLError:
        return False


def _packages(kind: str) -> str:
    """What to install, of the published packages."""
    found = sorted(set(published().get(kind, {}).values()))
    return f": pip install {' (or '.join(found[:2])}{')' if len(found) > 1 else ''}" if found else ""
