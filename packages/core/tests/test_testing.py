"""The old names of what the package rl-plugin-kit has now."""

from __future__ import annotations

import importlib
import sys

import pytest

OLD = ("rl_core.testing.conformance", "rl_core.testing.suites")


@pytest.fixture
def imported(monkeypatch):
    """`imported(module)` imports it anew."""

    def imported(module: str):
        monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(module)

    return imported


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_offers_what_the_new_one_does_and_warns(imported, old):
    new = importlib.import_module(old.replace("rl_core.testing", "rl_plugin_kit"))
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new.__name__}; the old name goes in 0.3$") as warned:
        module = imported(old)
    assert [one.filename for one in warned] == [importlib.__file__]
    assert {name: getattr(module, name) for name in new.__all__} == {name: getattr(new, name) for name in new.__all__}


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_says_what_to_install(imported, monkeypatch, old):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        imported(old)
    new = old.replace("rl_core.testing", "rl_plugin_kit")
    assert str(caught.value) == f'{old} is now {new}, which is not installed\n    pip install "rl-core[testing]"'
