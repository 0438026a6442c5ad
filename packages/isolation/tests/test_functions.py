from __future__ import annotations

import pickle
import sys

import pytest
from rl_core.errors import ConfigError
from rl_isolation.functions import load_function, missing_function


@pytest.fixture
def file(folder):
    def write(text: str, name: str = "fn.py") -> str:
        (folder / name).write_text(text)
        return str(folder / name)

    return write


def error_of(ref: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_function(ref)
    return str(caught.value)


def test_a_function_of_a_module():
    from json import dumps

    assert load_function("json:dumps") is dumps
    assert load_function("json:JSONEncoder.encode").__name__ == "encode"


def test_a_function_of_a_file_is_loaded_once(file):
    path = file("def double(x):\n    return 2 * x\n")
    function = load_function(f"{path}:double")
    assert function(4) == 8
    assert load_function(f"{path}:double") is function


def test_files_with_the_same_name_stay_apart(folder, file):
    (folder / "other").mkdir()
    one = load_function(file("def f():\n    return 1\n") + ":f")
    two = load_function(file("def f():\n    return 2\n", "other/fn.py") + ":f")
    assert (one(), two()) == (1, 2)


def test_what_a_file_defines_can_be_pickled(file):
    path = file(
        "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\ndef make(x):\n    return Point(x)\n"
    )
    make = load_function(f"{path}:make")
    assert pickle.loads(pickle.dumps(make(3))) == make(3)
    assert pickle.loads(pickle.dumps(make)) is make


def test_a_missing_function_suggests_the_closest(file):
    path = file("from os.path import join\ndef score_answer(x): ...\ndef _hidden(x): ...\nvalue = 3\n")
    assert error_of(f"{path}:score_anser") == (
        f"{path}:score_anser: {path} has no function 'score_anser'\n    did you mean 'score_answer'?"
    )
    assert error_of(f"{path}:xyz") == f"{path}:xyz: {path} has no function 'xyz'\n    its functions are: score_answer"
    assert error_of(f"{path}:value") == (
        f"{path}:value: 'value' is int, not a function\n    its functions are: score_answer"
    )


def test_a_file_without_functions_says_so(file):
    path = file("")
    assert error_of(f"{path}:f") == f"{path}:f: {path} has no function 'f'\n    it defines no functions"


def test_a_missing_file_suggests_the_closest(file, folder):
    path = file("", "reward.py")
    missing = str(folder / "rewards.py")
    assert error_of(f"{missing}:f") == f"{missing}:f: there is no file {missing}\n    did you mean {path!r}?"
    assert error_of("/no/such/fn.py:f") == (
        "/no/such/fn.py:f: there is no file /no/such/fn.py\n    the folder /no/such does not exist"
    )


def test_a_missing_module_is_named():
    assert error_of("no_such_module.sub:f") == (
        "no_such_module.sub:f: there is no Python module 'no_such_module'\n"
        "    install the package that has it, or name a file: path/to/file.py:function"
    )


def test_a_failing_import_tells_where(file):
    path = file("x = 1\ny = 1 / 0\n")
    assert error_of(f"{path}:f") == (f"{path}:f: importing it failed at {path}:2: ZeroDivisionError: division by zero")
    assert not [
        name for name in sys.modules if name.startswith("rl_core_user_fn_") and sys.modules[name].__file__ == path
    ]
    path = file("def f(:\n", "syntax.py")
    assert error_of(f"{path}:f").startswith(f"{path}:f: importing it failed at {path}:1: SyntaxError: ")
    path = file("import no_such_module\n", "needs.py")
    assert error_of(f"{path}:f") == (
        f"{path}:f: importing it failed at {path}:1: ModuleNotFoundError: No module named 'no_such_module'\n"
        "    install 'no_such_module', or put the folder that holds it on PYTHONPATH"
    )


def test_a_malformed_reference_is_explained():
    assert error_of("score") == "function reference must be 'module:function' or 'file.py:function', found 'score'"


@pytest.mark.parametrize(
    ("source", "name", "found"),
    [
        ("def tool(): ...", "tool", None),
        ("from os.path import basename as tool", "tool", None),
        ("from os.path import *", "tool", None),
        ("if True:\n    tool = len", "tool", None),
        ("class Game:\n    def tool(self): ...", "Game.tool", None),
        ("class Game:\n    def tool(self): ...", "tool", "has no 'tool' | it has: Game"),
        ("def tools(): ...", "tool", "has no 'tool' | did you mean 'tools'?"),
        ("", "tool", "has no 'tool' | it defines nothing"),
        ("def tool(:", "tool", ":1 is no Python: invalid syntax (<unknown>, line 1) | "),
    ],
)
def test_a_missing_function_shows_without_running_its_file(source, name, found, tmp_path):
    file = tmp_path / "my_tools.py"
    file.write_text(f"{source}\n")
    problem = missing_function(f"{file}:{name}")
    assert (None if problem is None else " | ".join(problem).removeprefix(str(file)).strip(" ")) == (
        None if found is None else found.strip(" ")
    )
