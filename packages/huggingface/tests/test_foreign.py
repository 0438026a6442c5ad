"""Files that others wrote, read without hanging; their errors name them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rl_core.errors import ConfigError, DataError, EnvironmentProblem
from rl_huggingface.foreign import foreign, read_json
from rl_huggingface.model_folder import check_config


class PanicException(BaseException):
    """As libraries written in Rust raise it."""


class OutOfMemoryError(RuntimeError):
    """As PyTorch raises it."""


@pytest.mark.parametrize(
    "error", [ValueError("bad"), KeyError("x"), RecursionError(), AssertionError(), PanicException("at the disco")]
)
def test_whatever_is_raised_becomes_an_error_that_names_the_folder(error: BaseException) -> None:
    with pytest.raises(EnvironmentProblem) as caught, foreign("/models/a"):
        raise error
    first, second = str(caught.value).split("\n")
    assert first.startswith("cannot read the model /models/a: ")
    assert second == "    copy or download it again"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            ImportError("TimmWrapperModel needs timm. You can install it with pip: `pip install timm`."),
            "pip install timm",
        ),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "pip install tiktoken"),
        (ImportError("cannot load the library"), "install the package that it needs, and try again"),
    ],
)
def test_a_package_that_is_missing_is_to_be_installed_and_no_file_copied(error: ImportError, fix: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught, foreign("/models/a"):
        raise error
    assert str(caught.value).endswith(f"\n    {fix}")


def test_an_error_that_explains_itself_keeps_its_kind_and_its_advice() -> None:
    with pytest.raises(ConfigError) as caught, foreign("/models/a"):
        raise ConfigError("tp does not divide it\n    set tp: 2")
    assert str(caught.value) == "the model /models/a: tp does not divide it\n    set tp: 2"
    with pytest.raises(DataError) as named, foreign("/models/a"):
        raise DataError("/models/a/x is empty\n    fill it")
    assert str(named.value) == "/models/a/x is empty\n    fill it"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), OutOfMemoryError("cuda")])
def test_what_is_no_fault_of_the_folder_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), foreign("/models/a"):
        raise error


def test_json_is_read_from_regular_files_of_a_limited_size(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": [1, 2.5, null]}')
    assert read_json(file) == {"a": [1, 2.5, None]}
    (tmp_path / "link.json").symlink_to(file)
    assert read_json(tmp_path / "link.json") == {"a": [1, 2.5, None]}
    with pytest.raises(EnvironmentProblem, match="has 21 bytes; at most 20 are read"):
        read_json(file, max_bytes=20)
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe"), (".", "a folder"), ("none", "No such file")):
        with pytest.raises(EnvironmentProblem, match=kind):
            read_json(tmp_path / name)
    with pytest.raises(EnvironmentProblem, match="a device"):
        read_json("/dev/zero")


@pytest.mark.parametrize(("depth", "fits"), [(64, True), (65, False), (100_000, False)])
def test_json_may_be_nested_to_a_limit(depth: int, fits: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[" * depth + "]" * depth)
    if fits:
        read_json(file)
        return
    with pytest.raises(EnvironmentProblem, match="nested too deeply"):
        read_json(file)


def test_limits_of_state_space_models_may_be_infinite() -> None:
    config = {"model_type": "mamba2", "hidden_size": 8, "time_step_limit": [0.0, float("inf")], "n_inner": None}
    check_config(config, where=Path("config.json"))
