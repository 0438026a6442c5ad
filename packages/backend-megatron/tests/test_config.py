"""The config section, and the layouts that `rl check` explains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rl_backend_megatron.config import MegatronConfig, ParallelConfig
from rl_backend_megatron.plugin import register_backends
from rl_core.config.problems import Problem
from rl_core.config.sections import AlgorithmConfig, ModelConfig

INIT = {"architecture": "qwen2", "hidden_size": 48, "layers": 6, "heads": 6, "kv_heads": 2, "ffn": 96}


def problems(parallel: dict, *, gpus: int = 0, nodes: int = 1, model: ModelConfig | None = None) -> list[Problem]:
    config = MegatronConfig(name="megatron", parallel=parallel)
    run = SimpleNamespace(gpus=gpus, nodes=nodes)
    algorithm = SimpleNamespace(config=AlgorithmConfig(name="sft"))
    stage = SimpleNamespace(run=run, model=model or ModelConfig(init=INIT), algorithm=algorithm)
    return list(config.problems(stage))


def test_ranks_are_the_gpus_or_the_product_of_the_layout() -> None:
    def ranks(parallel: dict, gpus: int) -> int:
        return MegatronConfig(name="megatron", parallel=parallel).world_size(gpus)

    assert (ranks({}, 0), ranks({}, 8)) == (1, 8)
    assert (ranks({"ep": 4}, 0), ranks({"ep": 4, "dp": 8, "pp": 2}, 0), ranks({"ep": 4}, 8)) == (4, 16, 8)
    assert (ranks({"tp": 2, "pp": 3}, 0), ranks({"dp": 2, "tp": 2, "pp": 3}, 0), ranks({"tp": 2}, 8)) == (6, 12, 8)


@pytest.mark.parametrize(
    ("parallel", "gpus"), [({}, 0), ({"tp": 2, "pp": 3}, 0), ({"tp": 2, "pp": 2, "dp": 2}, 8), ({"pp": 6}, 6)]
)
def test_layouts_that_divide_the_model_are_fine(parallel: dict, gpus: int) -> None:
    assert problems(parallel, gpus=gpus) == []


@pytest.mark.parametrize(
    ("parallel", "path", "message", "fix"),
    [
        (
            {"tp": 4},
            "backend.parallel.tp",
            "model.init: attention heads 6 / tp 4 leaves a remainder of 2",
            "set backend.parallel.tp to one of 1, 2, 3, 6",
        ),
        (
            {"tp": 3},
            "backend.parallel.tp",
            "model.init: key/value heads 2 / tp 3 leaves a remainder of 2",
            "set backend.parallel.tp to one of 1, 2",
        ),
        (
            {"pp": 4},
            "backend.parallel.pp",
            "model.init: layers 6 / pp 4 leaves a remainder of 2",
            "set backend.parallel.pp to one of 1, 2, 3, 6",
        ),
        (
            {"cp": 2},
            "backend.parallel.cp",
            "cp 2: Megatron Core splits sequences over ranks only inside Transformer Engine's attention on CUDA, "
            "which this version does not support",
            "set backend.parallel.cp=1; for long sequences use tp with sequence: true, or backend: {name: fsdp2}",
        ),
        (
            {"ep": 2},
            "backend.parallel.ep",
            "model.init: ep 2: a qwen2 model has no experts to spread",
            "set backend.parallel.ep=1",
        ),
        (
            {"dp": 3, "ep": 2},
            "backend.parallel.ep",
            "ep 2 spreads experts over data-parallel copies, whose number is 3",
            "set backend.parallel.ep to a divisor of 3, or parallel.dp to a multiple of 2",
        ),
        (
            {"sequence": True},
            "backend.parallel.sequence",
            "sequence: true splits activations over tensor-parallel ranks, and tp is 1",
            "set backend.parallel.tp to 2 or more, or remove sequence",
        ),
    ],
)
def test_an_impossible_layout_is_explained_with_its_arithmetic(
    parallel: dict, path: str, message: str, fix: str
) -> None:
    assert Problem(path=path, message=message, fix=fix) == problems(parallel)[0 if parallel != {"tp": 3} else -1]


def test_a_feed_forward_part_that_does_not_divide_is_a_problem() -> None:
    model = ModelConfig(init={**INIT, "ffn": 97})
    assert problems({"tp": 2}, model=model) == [
        Problem(
            path="backend.parallel.tp",
            message="model.init: feed-forward width 97 / tp 2 leaves a remainder of 1",
            fix="set backend.parallel.tp to one of 1",
        )
    ]


def test_gpus_that_do_not_make_whole_copies_are_a_problem() -> None:
    assert problems({"tp": 2, "pp": 3}, gpus=4, nodes=2) == [
        Problem(
            path="backend.parallel",
            message="one copy of the model takes tp 2 × pp 3 × cp 1 = 6 GPUs, which does not divide 8 GPUs "
            "(run.gpus 4 × run.nodes 2)",
            fix="choose tp × pp × cp among the divisors of 8",
        )
    ]


def test_data_parallel_ranks_that_do_not_match_the_gpus_are_a_problem() -> None:
    assert problems({"tp": 2, "dp": 3}, gpus=8) == [
        Problem(
            path="backend.parallel.dp",
            message="dp 3 × tp 2 × pp 1 × cp 1 = 2 is 6 ranks, but there are 8 GPUs (run.gpus 8 × run.nodes 1)",
            fix="leave backend.parallel.dp out, or set it to 4",
        )
    ]


def test_a_model_folder_is_read_for_its_numbers(tmp_path: Path) -> None:
    numbers = {"model_type": "qwen3", "num_hidden_layers": 5, "num_attention_heads": 8, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    assert problems({"pp": 2}, model=ModelConfig(path=str(tmp_path))) == [
        Problem(
            path="backend.parallel.pp",
            message=f"{tmp_path / 'config.json'}: layers 5 / pp 2 leaves a remainder of 1",
            fix="set backend.parallel.pp to one of 1, 5",
        )
    ]
    assert problems({"pp": 2}, model=ModelConfig(path="Qwen/Qwen3-0.6B")) == []


def test_layouts_of_experts_are_explained(tmp_path: Path) -> None:
    experts = ModelConfig(init={**INIT, "architecture": "qwen3_moe", "extra": {"num_experts": 6}})
    assert problems({"ep": 2, "pp": 3}, model=experts) == []
    assert problems({"ep": 4}, model=experts) == [
        Problem(
            path="backend.parallel.ep",
            message="model.init: experts 6 / ep 4 leaves a remainder of 2",
            fix="set backend.parallel.ep to one of 1, 2, 3, 6",
        )
    ]
    assert problems({"tp": 2}, model=experts) == [
        Problem(
            path="backend.parallel.tp",
            message="model.init: tp 2: this version does not split models with experts by tensors",
            fix="set backend.parallel.tp=1, and use ep and pp",
        )
    ]
    numbers = {"model_type": "qwen3_moe", "num_hidden_layers": 2, "num_attention_heads": 8, "num_experts": 6}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    (found,) = problems({"ep": 4}, model=ModelConfig(path=str(tmp_path)))
    assert found.message == f"{tmp_path / 'config.json'}: experts 6 / ep 4 leaves a remainder of 2"


@pytest.mark.parametrize("architecture", ["gemma2", "mixtral"])
def test_an_architecture_that_cannot_be_built_is_named(architecture: str) -> None:
    model = ModelConfig(init={**INIT, "architecture": architecture})
    assert problems({"tp": 2}, model=model) == [
        Problem(
            path="backend.name",
            message=f"model.init: the megatron backend cannot build {architecture!r} models",
            fix="choose one of llama, qwen2, qwen3, qwen3_moe, or backend: {name: fsdp2}",
        )
    ]


def test_every_field_has_a_description() -> None:
    for model in (MegatronConfig, ParallelConfig):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_plugin_and_config_import_neither_torch_nor_transformers_nor_megatron() -> None:
    code = (
        "import sys, rl_backend_megatron.plugin, rl_backend_megatron.config; "
        "print({'torch', 'transformers', 'megatron'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_plugin_offers_the_backend_by_name() -> None:
    (component,) = register_backends()
    assert (component.kind, component.name) == ("backend", "megatron")
    assert component.factory == "rl_backend_megatron.backend:MegatronBackend"
