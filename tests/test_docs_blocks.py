"""Every code block of the documentation and the READMEs works as it stands there.

- ``yaml`` is a config that the check accepts. Where sections are missing, they come from a file in docs/snippets.
- ``python`` is executed, a page's blocks one after the other in one namespace; ``json`` and ``toml`` are read.
- Commands in ``bash`` are looked up, and run where that is cheap (doc_commands.py); ``cd`` holds for what follows.
- A block with ``title="name"`` is also written to that file, for the blocks after it.
- ``text`` and ``mermaid`` show something and are not run.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from doc_blocks import Block, blocks, pages
from doc_commands import run_shell
from doc_world import add_reward_model, make_world
from rl_core.discovery.lookup import ComponentNotFound
from rl_core.discovery.registry import load_registry
from rl_core.preflight.check import check
from rl_core.preflight.crosscheck import REQUIRED
from support import ROOT

SHOWN = ("mermaid", "text")


def installed(page: Path) -> bool:
    """A package with an environment of its own has its README tested there."""
    if page.parent.parent != ROOT / "packages":
        return True
    name = tomllib.loads((page.parent / "pyproject.toml").read_text())["project"]["name"]
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


PAGES = [page for page in pages() if blocks(page) and installed(page)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("documentation") / "world")
    add_reward_model(folder / "rm")
    shutil.copytree(folder / "rm", folder / "runs" / "helpful" / "stages" / "rm" / "export")
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world as the working directory."""
    shutil.copytree(world, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    return tmp_path / "here"


def base_for(snippet: dict) -> dict:
    """The config of docs/snippets that lends a snippet its other sections: what its algorithm trains on decides."""
    name = "rollouts"
    if "algorithm" in snippet:
        try:
            algorithm = load_registry().find("algorithm", snippet["algorithm"]["name"])
        except ComponentNotFound as error:
            raise AssertionError(str(error)) from error
        name = "rollouts" if "generator" in algorithm.component.needs else "examples"
    return yaml.safe_load((ROOT / "docs" / "snippets" / f"{name}.yaml").read_text())


def check_config(block: Block) -> None:
    given = yaml.safe_load(block.text)
    config = Path(block.title or "block.yaml")
    if block.title or "stages" in given or "extends" in given or all(section in given for section in REQUIRED):
        config.write_text(block.text)
    else:
        config.write_text(yaml.safe_dump(_joined(base_for(given), given)))
    result = check(config, [], load_registry())
    if result.errors:
        raise AssertionError("\n".join(str(problem) for problem in result.errors))


def _joined(base: dict, given: dict) -> dict:
    """``run`` and ``model`` are merged key by key, sections that name a component are taken whole."""
    for key in ("run", "model"):
        if key in given and not (key == "model" and "path" in given[key]):
            given = given | {key: base[key] | given[key]}
    return base | given


def try_block(block: Block, names: dict) -> None:
    """Raise what is wrong with a block; ``names`` holds what the Python blocks before it defined."""
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.text)
    if block.language == "yaml":
        if block.title.startswith("."):
            assert yaml.safe_load(block.text)
        else:
            check_config(block)
    elif block.language == "python":
        exec(compile(block.text, block.where, "exec"), names)
    elif block.language == "json":
        assert json.loads(block.text)
    elif block.language == "toml":
        assert tomllib.loads(block.text)
    elif block.language == "bash":
        run_shell(block.text)
    elif block.language not in SHOWN:
        raise AssertionError(f"a fence names its language: yaml, python, bash, json, toml or {' or '.join(SHOWN)}")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_block_of_a_page_works(page, here, cluster):
    failures, names = [], {"__name__": "block"}
    for block in blocks(page):
        try:
            try_block(block, names)
        except Exception as error:  # all blocks of a page are reported at once
            failures.append(f"{block.where}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
