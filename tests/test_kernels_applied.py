"""A run's log says that rl-kernels-cpu computes the models of the quickstart and of the comparison with TRL."""

from __future__ import annotations

import re

import pytest
from support import EXAMPLES, ROOT

pytestmark = pytest.mark.slow


def shape(size):
    """Overrides of the quickstart's first model by a size of the comparison."""
    from compare.workloads import SIZES

    one = SIZES[size]
    fields = {"hidden_size": one.hidden_size, "layers": one.layers, "heads": one.heads, "kv_heads": one.kv_heads}
    return [f"stages.sft.model.init.{name}={value}" for name, value in {**fields, "ffn": one.ffn}.items()]


@pytest.mark.parametrize("model", ["quickstart", "3M", "25M"])
def test_the_log_says_that_the_cpu_kernel_is_applied(rl, tmp_path, monkeypatch, model):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    larger = {"quickstart": [], "3M": shape("s"), "25M": shape("m")}[model]
    short = ["stages.sft.run.steps=1", "stages.grpo.run.steps=1", "stages.grpo.algorithm.prompts_per_step=2"]
    short += ["stages.sft.evaluators=[]", "stages.grpo.evaluators=[]", "eval_data=null", "loggers=[]"]
    run = tmp_path / "run"
    rl("run", EXAMPLES / "quickstart.yaml", f"run.directory={run}", *short, *larger, timeout=600)
    lines = [line for path in run.rglob("*.log") if "ray" not in path.parts for line in path.read_text().splitlines()]
    said = [found[1] for line in lines if (found := re.search(r"((?:role|generator) \S+ kernel .*)", line))]
    assert set(said) == {
        "role policy: kernel cpu is used: ragged rows, Llama layers",
        "generator hf: kernel cpu is used: Llama layers",
    }
    assert said.count("role policy: kernel cpu is used: ragged rows, Llama layers") == 2, "in both stages"
