"""The config section."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

from rl_backend_fsdp2.config import Fsdp2Config, ParallelConfig
from rl_backend_fsdp2.plugin import register_backends
from rl_core.config.problems import Problem


def stage(gpus: int, nodes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(run=SimpleNamespace(gpus=gpus, nodes=nodes))


def test_ranks_follow_the_gpus_or_the_config() -> None:
    default, two = Fsdp2Config(name="fsdp2"), Fsdp2Config(name="fsdp2", parallel={"dp": 2})
    assert (default.world_size(0), default.world_size(8), two.world_size(0)) == (1, 8, 2)


def test_ranks_that_do_not_match_the_gpus_are_a_problem() -> None:
    config = Fsdp2Config(name="fsdp2", parallel={"dp": 3})
    assert list(config.problems(stage(4, nodes=2))) == [
        Problem(
            path="backend.parallel.dp",
            message="3 data-parallel ranks do not match 8 GPUs (run.gpus 4 × run.nodes 2)",
            fix="leave backend.parallel.dp out to use every GPU",
        )
    ]
    assert list(config.problems(stage(3))) == []
    assert list(config.problems(stage(0))) == []


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
