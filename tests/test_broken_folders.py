"""Whatever a model's folder holds, loading it ends soon: with a model, or with an error that names the folder."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_folders import Broken, broken_folders, good_folder, make
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.model import ModelSpec, Role
from rl_core.discovery.registry import load_registry
from rl_core.errors import EnvironmentProblem
from rl_core.preflight.check import check
from rl_data_text.config import HfTokenizerConfig
from rl_data_text.tokenizers.hf import HfTokenizer
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator
from rl_huggingface.model_folder import check_model_folder

torch.set_num_threads(1)

DEADLINE = 20.0
"""Seconds; a load takes 0.1 s on a machine with nothing else to do."""

ALL = broken_folders()
CONTEXT = WorkerContext(rank=0, world_size=1, master_address="127.0.0.1", master_port=0, threads=1)
POLICY = Role("policy", trainable=False)

Load = Callable[[str], Any]


class Late(BaseException):
    """A load took longer than the deadline."""


@contextmanager
def deadline() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Broken], Path]:
    base = tmp_path_factory.mktemp("folders")
    good, sharded = good_folder(base / "good"), good_folder(base / "sharded", sharded=True)
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    return lambda broken: make(broken, good, sharded, base / f"{time.monotonic_ns()}")


def loader(backend: Any) -> Iterator[Load]:
    backend.setup(CONTEXT)
    yield lambda path: backend.load(POLICY, ModelSpec(path=path, max_length=32), None)
    backend.close()


@pytest.fixture
def sharded_load() -> Iterator[Load]:
    yield from loader(Fsdp2Backend(Fsdp2Config(name="fsdp2", precision="bf16")))


@pytest.fixture
def plain_load() -> Iterator[Load]:
    yield from loader(Fsdp2Backend(Fsdp2Config(name="fsdp2")))


@pytest.fixture
def megatron_load() -> Iterator[Load]:
    pytest.importorskip("megatron.core")
    from rl_backend_megatron.backend import MegatronBackend
    from rl_backend_megatron.config import MegatronConfig

    yield from loader(MegatronBackend(MegatronConfig(name="megatron")))


def generator_load(path: str) -> None:
    HfGenerator(HfGeneratorConfig(name="hf")).load(ModelSpec(path=path, max_length=32), path)


def tokenizer_load(path: str) -> None:
    HfTokenizer(HfTokenizerConfig(name="hf")).load(path, [])


def outcome(load: Load, folder: Path) -> str:
    """What is wrong with how ``load`` ended; empty where it is an error as it should be."""
    try:
        with deadline():
            load(str(folder))
    except EnvironmentProblem as error:
        named, advised = str(folder) in str(error), "\n    " in str(error)
        return "" if named and advised else f"an error without the folder or without advice: {error}"
    except (Exception, Late) as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def outcomes(load: Load, cases: list[Broken], folders: Callable[[Broken], Path]) -> dict[str, str]:
    """Name → what is wrong, of those with which something is."""
    found = {case.name: outcome(load, folders(case)) for case in cases}
    return {name: text for name, text in found.items() if text}


MODELS = [case for case in ALL if case.part == "model"]
TOKENIZERS = [case for case in ALL if case.part == "tokenizer"]


def test_there_are_more_than_a_hundred_of_them() -> None:
    assert len(ALL) > 105


LOADERS = ["sharded_load", "plain_load", "megatron_load", "generator_load"]


@pytest.fixture(params=LOADERS)
def load(request: pytest.FixtureRequest) -> Load:
    return generator_load if request.param == "generator_load" else request.getfixturevalue(request.param)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_folders_they_are_made_from_load(load: Load, sharded: bool, tmp_path: Path) -> None:
    folder = good_folder(tmp_path, sharded=sharded)
    for one in (load, tokenizer_load, check_model_folder):
        one(str(folder))


def test_models_are_refused_by_every_loader(load: Load, folders: Callable[[Broken], Path]) -> None:
    assert outcomes(load, MODELS, folders) == {}


def test_a_tokenizer_that_is_damaged_is_refused(folders: Callable[[Broken], Path]) -> None:
    assert outcomes(tokenizer_load, TOKENIZERS, folders) == {}


def test_rl_check_reports_what_can_be_seen_without_a_tensor_library(
    folders: Callable[[Broken], Path], tmp_path: Path
) -> None:
    registry, data, wrong = load_registry(), tmp_path / "data.jsonl", {}
    data.write_text(json.dumps({"prompt": "w3", "completion": "w4"}) + "\n")
    sections = {
        "algorithm": {"name": "sft"},
        "backend": {"name": "auto"},
        "data": {"name": "jsonl", "path": str(data)},
        "run": {"steps": 1, "directory": str(tmp_path / "run")},
    }
    for case in ALL:
        folder, config = folders(case), tmp_path / "config.yaml"
        config.write_text(json.dumps({**sections, "model": {"path": str(folder)}}))
        try:
            with deadline():
                problems = check(config, [], registry).errors
        except (Exception, Late) as error:
            wrong[case.name] = f"{type(error).__name__}: {error}"
            continue
        if case.checked and not any(str(folder) in str(problem) for problem in problems):
            wrong[case.name] = str([str(problem) for problem in problems])
    assert wrong == {}


SECTIONS: dict[str, dict[str, Any]] = {
    "algorithm.reference.path": {"algorithm": {"name": "dpo"}},
    "algorithm.value.path": {
        "algorithm": {"name": "ppo", "value": {}},
        "generator": {"name": "hf", "max_new_tokens": 4},
        "rewards": [{"name": "exact_match"}],
    },
}


@pytest.mark.parametrize("key", SECTIONS)
def test_rl_check_looks_into_every_model_that_a_config_names(
    key: str, folders: Callable[[Broken], Path], tmp_path: Path
) -> None:
    registry, data, good = load_registry(), tmp_path / "data.jsonl", good_folder(tmp_path, sharded=False)
    data.write_text(json.dumps({"prompt": "w3", "completion": "w4", "chosen": "w4", "rejected": "w5"}) + "\n")
    sections = {
        "model": {"path": str(good), "max_length": 32},
        "backend": {"name": "fsdp2"},
        "data": {"name": "jsonl", "path": str(data)},
        "run": {"steps": 1, "directory": str(tmp_path / "run")},
        **SECTIONS[key],
    }
    wrong = {}
    for case in (case for case in MODELS if case.checked):
        folder, config = folders(case), tmp_path / "config.yaml"
        config.write_text(json.dumps(sections))
        problems = check(config, [f"{key}={folder}"], registry).errors
        # What is quantised in a way that cannot be undone, the backend finds, and says at its own section.
        if [one.path in (key, "backend") and str(folder) in str(one) for one in problems] != [True]:
            wrong[case.name] = str([str(problem) for problem in problems])
    assert wrong == {}


def test_rl_check_says_once_what_is_wrong_with_a_reward_model(tmp_path: Path) -> None:
    folder, data, config = good_folder(tmp_path, sharded=False), tmp_path / "data.jsonl", tmp_path / "config.yaml"
    fields = json.loads((folder / "config.json").read_text())
    rewarding = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "id2label": {"0": "r"}}
    data.write_text(json.dumps({"prompt": "w3"}) + "\n")
    sections = {
        "model": {"init": {"architecture": "qwen2", "hidden_size": 16, "layers": 1, "heads": 2}, "max_length": 32},
        "tokenizer": {"name": "hf", "path": str(folder)},
        "algorithm": {"name": "grpo"},
        "backend": {"name": "fsdp2"},
        "generator": {"name": "hf", "max_new_tokens": 4},
        "rewards": [{"name": "model", "path": str(folder)}],
        "data": {"name": "jsonl", "path": str(data)},
        "run": {"steps": 1, "directory": str(tmp_path / "run")},
    }
    config.write_text(json.dumps(sections))
    for change, reason in (
        ({}, "not a sequence-classification model"),
        (rewarding | {"vocab_size": 7}, "the files do not fit the config.json"),
        (rewarding | {"quantization_config": {"quant_method": "gptq"}}, "its weights are quantised"),
        (rewarding, None),
    ):
        (folder / "config.json").write_text(json.dumps(fields | change))
        problems = [str(one) for one in check(config, [], load_registry()).errors]
        assert len(problems) == (reason is not None), problems
        assert all("rewards.0.path: " in one and reason in one for one in problems), problems
