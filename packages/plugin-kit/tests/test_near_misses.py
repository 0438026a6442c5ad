"""Methods with almost the name of one that core calls."""

from __future__ import annotations

import threading

import pytest
from rl_core.algorithm import AlgorithmBase
from rl_core.contracts.algorithm import Algorithm
from rl_core.contracts.backend import Backend
from rl_core.contracts.profiling import Profiles
from rl_plugin_kit.near_misses import near_misses


def nothing(self):
    pass


def found(names: str, *contracts: type, optional: tuple[str, ...] = (), base: type = object) -> dict[str, str]:
    """Of a class with methods of these names."""
    component = type("Mine", (base,), dict.fromkeys(names.split(), nothing))
    return dict(near_misses(component, contracts, optional))


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("state_dict", "state"),
        ("get_state", "state"),
        ("load_state_dict", "load_state"),
        ("set_state", "load_state"),
        ("loadState", "load_state"),
        ("limit_row", "limit_rows"),
        ("evalute", "evaluate"),
    ],
)
def test_a_name_of_another_library_or_a_slip_is_found(name, called):
    assert found(name, Algorithm, base=AlgorithmBase) == {name: called}


def test_names_of_unittest_and_of_optional_protocols_are_found():
    assert found("setUp start_profiling stop_profile", Backend, Profiles) == {
        "setUp": "setup",
        "start_profiling": "start_profile",
    }
    assert found("on_close", optional=("close",)) == {"on_close": "close"}


def test_other_names_are_the_authors_own():
    names = "stats stage statistics _state_dict loads keep_best starting_point evaluation_loss plans"
    assert found(names, Algorithm, base=AlgorithmBase) == {"plans": "plan"}


def test_a_method_beside_the_one_that_is_called_is_fine():
    assert found("state state_dict load_state set_state", Algorithm, base=AlgorithmBase) == {}


def test_what_a_base_of_another_package_defines_is_not_the_authors():
    assert found("run", optional=("begin", "joined"), base=threading.Thread) == {}
    assert found("joins", optional=("join",), base=threading.Thread) == {}
