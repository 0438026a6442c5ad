"""Validated sections → frozen stage configs, and back to plain data that reproduces them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl_secrets.redaction import redact

from rl_core.component import SECTIONS, ComponentChoice
from rl_core.config.compose import LISTS, STAGE_SECTIONS
from rl_core.config.document import Node
from rl_core.config.findings import Findings, Path
from rl_core.config.interpolate import escape
from rl_core.config.sections import Section
from rl_core.config.select import Selected, report_crash
from rl_core.config.stage import StageConfig
from rl_core.config.typed_secrets import Writer

_RUN_WIDE = ("name", "directory")


def build_stage(
    selected: Selected, read: frozenset[str], findings: Findings, writer: Writer
) -> tuple[StageConfig, dict] | None:
    """The stage and its sections as plain data; None where a section is missing or invalid."""
    choices: dict[str, tuple[ComponentChoice, ...]] = {}
    for section in SECTIONS:
        group = [selection.choice() for selection in selected.selections.get(section, ())] if section in read else []
        if any(choice is None for choice in group):
            return None
        choices[section] = tuple(choice for choice in group if choice is not None)
    first = {section: group[0] if group else None for section, group in choices.items()}
    algorithm, backend, tokenizer, data = (first[s] for s in ("algorithm", "backend", "tokenizer", "data"))
    model, run = selected.model, selected.run
    if model is None or run is None or algorithm is None or backend is None or tokenizer is None or data is None:
        return None
    try:
        resolved = _sections(selected, read, writer, for_reload=False)
        document = _sections(selected, read, writer, for_reload=True)
    except _Unwritable as error:
        report_crash(error.selection, findings, "its config cannot be written down", error.cause)
        return None
    stage = StageConfig(
        name=selected.tree.name,
        model=model,
        run=run,
        algorithm=algorithm,
        backend=backend,
        generator=first["generator"],
        tokenizer=tokenizer,
        data=data,
        eval_data=first["eval_data"],
        rewards=choices["rewards"],
        evaluators=choices["evaluators"],
        loggers=choices["loggers"],
        resolved=redact(resolved),
        environment=first["environment"],
        rollout=first["rollout"],
    )
    return stage, document


def run_document(name: str, directory: str, stages: Sequence[tuple[str, dict]], *, multi_stage: bool) -> dict[str, Any]:
    """The plain data of a whole run, from each stage's name and sections."""
    if not multi_stage:
        return stages[0][1]
    listed = []
    for stage, sections in stages:
        run = {key: value for key, value in sections["run"].items() if key not in _RUN_WIDE}
        listed.append({"name": stage, **sections, "run": run})
    return {"run": {"name": name, "directory": escape(directory)}, "stages": listed}


class _Unwritable(Exception):
    def __init__(self, selection: Any, cause: Exception) -> None:
        super().__init__(str(cause))
        self.selection, self.cause = selection, cause


def _sections(selected: Selected, read: frozenset[str], writer: Writer, *, for_reload: bool) -> dict[str, Any]:
    def plain(model: Section, node: Node | None, path: Path) -> Any:
        return writer.plain(_dump(model, for_reload), node, path, for_reload=for_reload)

    sections: dict[str, Any] = {}
    for section in STAGE_SECTIONS:
        if section in ("model", "run"):
            model = selected.model if section == "model" else selected.run
            assert model is not None
            sections[section] = plain(model, selected.nodes.get(section), (*selected.tree.path, section))
        elif section in read and (group := selected.selections.get(section)):
            dumped = []
            for index, selection in enumerate(group):
                place: Path = (section, index) if section in LISTS else (section,)
                try:
                    assert selection.config is not None
                    dumped.append(plain(selection.config, selection.node, (*selected.tree.path, *place)))
                except Exception as error:
                    raise _Unwritable(selection, error) from error
            sections[section] = dumped if section in LISTS else dumped[0]
    return sections


def _dump(model: Section, for_reload: bool) -> dict[str, Any]:
    # What was not given stays away from a config that is read again: models may ask which keys were given.
    return model.model_dump(mode="json", by_alias=True, exclude_unset=for_reload, warnings="none")
