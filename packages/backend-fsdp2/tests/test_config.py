"""The config section."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rl_backend_fsdp2.config import Fsdp2Config, ParallelConfig
from rl_backend_fsdp2.plugin import register_backends
from rl_core.config.problems import Problem
from rl_core.config.sections import AlgorithmConfig


def stage(
    gpus: int, nodes: int = 1, *, init: Any = None, adapter: str | None = None, path: str | None = None
) -> SimpleNamespace:
    return SimpleNamespace(
        run=SimpleNamespace(gpus=gpus, nodes=nodes),
        algorithm=SimpleNamespace(config=AlgorithmConfig(name="sft")),
        model=SimpleNamespace(path=path, init=init, adapter=adapter and SimpleNamespace(name=adapter, rank=6)),
    )


def config(**fields: Any) -> Fsdp2Config:
    return Fsdp2Config(name="fsdp2", **fields)


def test_ranks_follow_the_gpus_or_the_config() -> None:
    default, two = config(), config(parallel={"dp": 2})
    assert (default.world_size(0), default.world_size(8), two.world_size(0)) == (1, 8, 2)
    assert config(parallel={"dp": 2, "replicate": 3, "tp": 2, "cp": 4}).world_size(0) == 48


def test_data_parallel_ranks_are_what_the_other_dimensions_leave() -> None:
    sizes = ParallelConfig(tp=2, replicate=2).sizes(16)
    assert sizes == {"replicate": 2, "dp": 4, "cp": 1, "tp": 2}


def test_a_quantisation_that_cannot_be_undone_is_a_problem_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    assert list(config().problems(stage(0, path=str(tmp_path)))) == [
        Problem(
            "",
            f"the model {tmp_path}: its weights are quantised (quant_method 'awq') in a way that cannot be undone here",
            "give a copy of the model with float weights (bfloat16), as it was before it was quantised",
        )
    ]


def test_ranks_that_do_not_match_the_gpus_are_a_problem_with_the_arithmetic() -> None:
    assert list(config(parallel={"dp": 3}).problems(stage(4, nodes=2))) == [
        Problem(
            path="backend.parallel",
            message="replicate 1 × dp 3 × cp 1 × tp 1 = 3 ranks do not match 8 GPUs (run.gpus 4 × run.nodes 2)",
            fix="leave backend.parallel.dp out to use every GPU",
        )
    ]
    assert list(config(parallel={"tp": 3, "replicate": 2}).problems(stage(8))) == [
        Problem(
            path="backend.parallel",
            message="replicate 2 × dp 1 × cp 1 × tp 3 = 6 ranks do not match 8 GPUs (run.gpus 8 × run.nodes 1)",
            fix="choose replicate, cp and tp whose product divides 8",
        )
    ]
    assert list(config(parallel={"dp": 3}).problems(stage(3))) == []
    assert list(config(parallel={"dp": 3}).problems(stage(0))) == []


def test_heads_that_cannot_be_divided_are_a_problem() -> None:
    init = SimpleNamespace(heads=8, kv_heads=2)
    assert list(config(parallel={"tp": 4}).problems(stage(0, init=init))) == [
        Problem(
            path="backend.parallel.tp",
            message="4 tensor-parallel ranks cannot share model.init.kv_heads 2 equally",
            fix="choose a tp that divides 2",
        )
    ]
    assert list(config(parallel={"tp": 2}).problems(stage(0, init=init))) == []


@pytest.mark.parametrize("kind", ["dora", "adalora"])
def test_adapters_that_tensor_parallelism_cannot_split_are_a_problem(kind: str) -> None:
    assert list(config(parallel={"tp": 2}).problems(stage(0, adapter=kind))) == [
        Problem(
            path="backend.parallel.tp",
            message=f"{kind} adapters do not work with tensor parallelism (2 ranks)",
            fix="set model.adapter.name: lora, or backend.parallel.tp: 1",
        )
    ]
    assert list(config(parallel={"tp": 2}).problems(stage(0, adapter="lora"))) == []


def test_an_adapter_whose_rank_cannot_be_divided_is_a_problem() -> None:
    assert list(config(parallel={"tp": 4}).problems(stage(0, adapter="lora"))) == [
        Problem(
            path="backend.parallel.tp",
            message="4 tensor-parallel ranks cannot share model.adapter.rank 6 equally",
            fix="choose a rank that is a multiple of 4",
        )
    ]


def test_sequence_parallelism_without_tensor_parallelism_is_a_problem() -> None:
    assert list(config(parallel={"sequence": True}).problems(stage(0))) == [
        Problem(
            path="backend.parallel.sequence",
            message="sequence has no effect without tensor parallelism",
            fix="set backend.parallel.tp, or remove sequence",
        )
    ]


def test_the_kind_of_attention_where_it_does_nothing_is_a_problem() -> None:
    assert list(config(attention="varlen", packing="padded").problems(stage(0))) == [
        Problem(
            path="backend.attention",
            message="attention has no effect on padded rows",
            fix="remove backend.attention",
        )
    ]
    assert list(config(attention="dense", parallel={"cp": 2}).problems(stage(0))) == [
        Problem(
            path="backend.attention",
            message="attention has no effect with context parallelism, which has its own",
            fix="remove backend.attention",
        )
    ]


def test_rows_are_free_for_a_kernel_to_lay_out_unless_a_setting_says_how() -> None:
    assert config(kernels=["cpu"]).layout_fixed_by == config().layout_fixed_by == ""
    for field, value in (("packing", "packed"), ("packing", "padded"), ("attention", "dense")):
        assert config(**{field: value}).layout_fixed_by == f"backend.{field}: {value}"
    assert config(compile=True).layout_fixed_by == "backend.compile"
    assert config(parallel={"cp": 2}).layout_fixed_by == "backend.parallel.cp"


def test_the_plan_says_which_kernels_are_used_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    assert list(config().plan_lines(stage(0))) == [("kernels", "none is installed")]
    kernel = SimpleNamespace(name="fast", expects=lambda use: f"not with {use.device} and {use.layout_fixed_by}")
    point = SimpleNamespace(name="fast", dist=None, module="fast", load=lambda: kernel)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    lines = list(config(packing="padded").plan_lines(stage(2)))
    assert lines == [("kernels", "not fast: not with cuda and backend.packing: padded")]
    assert list(config(kernels="none").plan_lines(stage(2))) == [("kernels", "none, as configured")]


def test_kernels_that_are_not_installed_are_a_problem() -> None:
    (problem,) = config(kernels=["no-such"]).problems(stage(0))
    assert problem.path == "backend.kernels"
    assert problem.message.startswith("no kernel 'no-such' is installed (")
    assert problem.fix == "pip install rl-kernels-no-such"
    for choice in ("auto", "none"):
        assert list(config(kernels=choice).problems(stage(0))) == []


def test_flash_attention_is_taken_on_gpus_in_16_bits() -> None:
    assert config(precision="bf16").uses_varlen(cuda=True)
    assert not config(precision="bf16").uses_varlen(cuda=False)
    assert not config().uses_varlen(cuda=True)
    assert not config(precision="bf16", attention="dense").uses_varlen(cuda=True)


def test_activation_checkpointing_may_be_yes_or_no() -> None:
    assert config(activation_checkpointing=True).activation_checkpointing == "full"
    assert config(activation_checkpointing=False).activation_checkpointing == "none"
    assert config(activation_checkpointing="selective").activation_checkpointing == "selective"


def test_every_field_has_a_description() -> None:
    for model in (Fsdp2Config, ParallelConfig):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_plugin_and_config_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, rl_backend_fsdp2.plugin, rl_backend_fsdp2.config; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_plugin_offers_the_backend_by_name() -> None:
    (component,) = register_backends()
    assert (component.kind, component.name) == ("backend", "fsdp2")
    assert component.factory == "rl_backend_fsdp2.backend:Fsdp2Backend"
