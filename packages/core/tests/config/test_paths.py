from __future__ import annotations

import os
import pickle

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from rl_core.config.paths import ConfigPath, FunctionRef, HubPath, ModelPath, SourceText, model_paths


def read(kind, value: str, base: str = "/conf"):
    return TypeAdapter(kind).validate_python(SourceText(value, base))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a/b.txt", "/conf/a/b.txt"),
        ("../b", "/b"),
        ("/x/./y", "/x/y"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("data/*.jsonl", "/conf/data/*.jsonl"),
    ],
)
def test_a_relative_path_starts_at_its_base(value, path):
    assert read(ConfigPath, value) == path


def test_a_plain_string_starts_at_the_working_directory(folder):
    assert TypeAdapter(ConfigPath).validate_python("x") == str(folder / "x")


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert read(ConfigPath, "~/x") == "/home/me/x"
    assert read(ModelPath, "~/x") == "/home/me/x"


def test_a_hub_id_stays_unless_it_is_a_folder(folder):
    assert read(ModelPath, "org/model", str(folder)) == "org/model"
    (folder / "org" / "model").mkdir(parents=True)
    assert read(ModelPath, "org/model", str(folder)) == str(folder / "org" / "model")
    assert read(ModelPath, "org/model", "/") == "org/model"


@pytest.mark.parametrize("value", ["./m", "../m", "/m", ".", ".."])
def test_a_model_path_that_looks_like_a_folder_is_one(value):
    assert read(ModelPath, value) == os.path.normpath(os.path.join("/conf", value))


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ("pkg.mod:fn", "pkg.mod:fn"),
        ("pkg:Class.method", "pkg:Class.method"),
        ("fn.py:score", "/conf/fn.py:score"),
        ("../lib/fn.py:score", "/lib/fn.py:score"),
        ("/abs/fn.py:score", "/abs/fn.py:score"),
    ],
)
def test_the_file_of_a_function_becomes_absolute(value, reference):
    assert read(FunctionRef, value) == reference


@pytest.mark.parametrize("value", ["score", "fn.py", "fn.py:", ":x", "a b:c", "fn-1:x", "fn.py:1x"])
def test_a_malformed_function_reference_says_what_is_expected(value):
    with pytest.raises(ValidationError) as caught:
        read(FunctionRef, value)
    error = caught.value.errors()[0]["ctx"]["error"]
    assert str(error) == f"must be 'module:function' or 'file.py:function', found {value!r}"


@pytest.mark.parametrize("kind", [ConfigPath, ModelPath])
def test_an_empty_path_is_refused(kind):
    with pytest.raises(ValidationError, match="the path is empty"):
        read(kind, "")


@pytest.mark.parametrize("kind", [ConfigPath, ModelPath, FunctionRef])
def test_a_value_that_is_no_text_is_refused(kind):
    with pytest.raises(ValidationError, match="should be a valid string"):
        TypeAdapter(kind).validate_python(5)


def test_config_text_pickles_as_plain_text():
    copy = pickle.loads(pickle.dumps(SourceText("x", "/conf")))
    assert (type(copy), copy) == (str, "x")


class Reference(BaseModel):
    path: ModelPath | None = None


class Models(BaseModel):
    path: ModelPath
    dataset: HubPath = "/data"
    teachers: list[ModelPath] = []
    by_name: dict[str, Reference] = {}
    reference: Reference | None = None
    either: Reference | str = "/text"


def test_the_paths_of_models_are_found_wherever_they_stand_in_a_section():
    section = Models(
        path="/a",
        teachers=["/b", "org/c"],
        by_name={"x": Reference(path="/d"), "y": Reference()},
        either={"path": "/e"},
    )
    assert dict(model_paths(section)) == {
        ("path",): "/a",
        ("teachers", 0): "/b",
        ("teachers", 1): "org/c",
        ("by_name", "x", "path"): "/d",
        ("either", "path"): "/e",
    }
