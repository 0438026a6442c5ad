"""Every hook, option, command-line flag and metric is documented, and every page can be found."""

from __future__ import annotations

import ast
import re
from types import ModuleType

import pluggy
import pytest
import yaml
from doc_blocks import blocks
from docs_site import commands, options
from docs_site.inventory import ROOT, hooks, offers, packages
from docs_site.links import relink, site_pages
from jsonschema import Draft202012Validator
from rl_core import hookspecs
from rl_core.config.run_section import RunSection
from rl_core.config.sections import ModelConfig
from rl_core.discovery.registry import load_registry
from rl_plan.schema import json_schema

DOCS = ROOT / "docs"
METRIC = re.compile(r"^(train|rollout|policy|value|mismatch|eval|data|time|environment)/[a-z0-9_/]+$")
HOOKS = hooks()


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_a_page_with_an_example_that_implements_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = DOCS / "hooks" / f"{name}.md"
    assert page.is_file(), f"write docs/hooks/{name}.md"
    assert f"\n::: rl_core.hookspecs.{name}\n" in page.read_text()
    first = next(block for block in blocks(page) if block.language == "python")
    plugin = ModuleType("documented")
    exec(first.text, vars(plugin))
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    assert [caller.name for caller in manager.get_hookcallers(plugin)] == [name]


def test_the_list_of_hooks_is_complete():
    listed = re.findall(r"^\| \[`(\w+)`\]\(\1\.md\) \|", (DOCS / "hooks" / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(HOOKS)


def test_every_option_is_described():
    models = [offer.config() for offer in offers()] + [RunSection, ModelConfig]
    blank = [f"{m.__name__}.{o.name}" for m in models for o in options.options(m) if not o.description.strip()]
    assert blank == []


def test_the_reference_lists_every_component_and_every_option():
    pages = options.pages()
    for offer in offers():
        page = pages[f"reference/{offer.component.kind.replace('_', '-')}s.md"]
        section = page.partition(f"\n## `{offer.component.name}`\n")[2].partition("\n## ")[0]
        assert f"[{offer.package}](../packages/{offer.package}.md)" in section
        fields = {field.alias or name for name, field in offer.config().model_fields.items()} - {"name"}
        assert fields <= set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)), offer.component.name


def test_an_option_is_shown_with_its_type_bounds_and_default():
    listed = {option.name: option for option in options.options(RunSection)}
    assert listed["steps"].type == "whole number ≥ 0"
    assert listed["steps"].default == "required"
    assert (listed["cpus"].type, listed["cpus"].default) == ("whole number ≥ 1 or null", "`null`")
    assert {option.name for option in options.options(ModelConfig)} >= {"adapter", "adapter.rank", "init.layers"}


def test_every_command_and_every_flag_is_described():
    found = commands.commands()
    assert {"rl run", "rl check", "rl schema", "rl plugin new"} <= {command.name for command in found}
    assert [command.name for command in found if not command.description] == []
    assert [f"{c.name} {p.name}" for c in found for p in c.parameters if not p.description] == []


def test_the_page_of_the_command_line_shows_every_flag():
    text = commands.page()
    assert "\n## `rl run`\n" in text
    assert "| `--name NAME` | Name of the run; short for run.name=NAME. |\n" in text
    assert "```text\nalgorithm    REINFORCE" in text


def metrics_in_sources() -> dict[str, str]:
    """Metric name → file, for every whole string in the packages' sources that has the form of one."""
    found = {}
    for folder in packages().values():
        for file in folder.glob("src/**/*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.match(node.value):
                    found.setdefault(node.value, str(file.relative_to(ROOT)))
    return found


def test_every_metric_that_a_package_writes_is_explained():
    explained = set(re.findall(r"`([a-z]+/[a-z0-9_/<>]+)`", (DOCS / "metrics.md").read_text()))
    found = metrics_in_sources()
    assert {"train/loss", "rollout/reward_mean"} <= found.keys()
    assert {name: file for name, file in found.items() if name not in explained} == {}


def test_the_schema_for_editors_accepts_every_example():
    schema = Draft202012Validator(json_schema(load_registry()))
    examples = [*ROOT.glob("examples/*.yaml"), *DOCS.glob("snippets/*.yaml")]
    assert len(examples) >= 10
    found = {path.name: [error.message for error in schema.iter_errors(_read(path))] for path in examples}
    assert {name: errors for name, errors in found.items() if errors} == {}


def _read(path):
    return yaml.safe_load(path.read_text())


def test_the_navigation_has_every_page_once():
    nav = list(_leaves(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Lenient)["nav"]))
    made = {*options.pages(), "reference/command-line.md", *site_pages().values()}
    written = {str(path.relative_to(DOCS)) for path in DOCS.glob("**/*.md")}
    assert sorted(nav) == sorted(made | written)


def test_links_lead_to_pages_of_the_site():
    def moved(text: str) -> str:
        return relink(text, source=ROOT / "README.md", page="index.md")

    assert moved("[a](docs/metrics.md#data)") == "[a](metrics.md#data)"
    assert moved("[a](packages/core)") == "[a](packages/rl-core.md)"
    assert moved("[a](examples/quickstart.yaml)") == "[a](examples/quickstart.md)"
    assert moved("[a](https://example.org/x.md)") == "[a](https://example.org/x.md)"
    assert moved("[a](ruff.toml)") == "a"
    source = ROOT / "docs" / "hooks" / "README.md"
    assert relink("[a](../../README.md)", source=source, page="hooks/README.md") == "[a](../index.md)"


def test_links_between_files_of_the_repository_lead_somewhere():
    broken = []
    for page in [*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *ROOT.glob("packages/*/README.md")]:
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


class _Lenient(yaml.SafeLoader):
    """Reads mkdocs.yml without importing what its ``!!python/name:`` tags name."""


_Lenient.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def _leaves(node):
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _leaves(child)
