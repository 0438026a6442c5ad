from __future__ import annotations

import io

from rich.console import Console
from rl_plan.table import plan_rows, render_plan

RL = "generator: {name: sampler, replicas: 3}\nrewards: [{name: digits}, {name: ordered}]\n"


def printed(config, registry) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render_plan(config, registry))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_the_plan_of_rollouts(config_of, base, registry, folder):
    text = base.replace("name: imitate", "name: clip, prompts_per_step: 32, minibatches: 2") + RL
    config = config_of(text, "run.steps=1000", "run.gpus=4", "run.nodes=2", "run.seed=7")
    assert plan_rows(config, config.stages[0], registry) == [
        ("model", "org/base (at most 1,024 tokens)"),
        ("algorithm", "clip (acme-kit 1.2)"),
        ("backend", "tiny (acme-kit 1.2)"),
        ("generator", "sampler (acme-kit 1.2)"),
        ("tokenizer", "hf (acme-kit 1.2)"),
        ("data", "lines (acme-kit 1.2)"),
        ("rewards", "digits (acme-kit 1.2), ordered (acme-kit 1.2)"),
        ("step", "32 prompts × 8 completions = 256 sequences"),
        ("optimizer steps", "2 per step × 1,000 steps = 2,000"),
        ("micro-batch", "at most 16,384 tokens per rank"),
        ("ranks", "8 (2 × 4 GPUs)"),
        ("generators", "3; on the trainers' GPUs; weights by object store"),
        ("seed", "7"),
        ("note", "one note"),
    ]


def test_components_have_lines_of_their_own_in_the_plan(config_of, base, registry, monkeypatch):
    config = config_of(base)
    stage = config.stages[0]
    before = plan_rows(config, stage, registry)
    say = lambda self, stage: [("kernels", f"{self.name} on {stage.run.gpus} GPUs")]  # noqa: E731
    monkeypatch.setattr(type(stage.backend.config), "plan_lines", say, raising=False)
    assert [row for row in plan_rows(config, stage, registry) if row not in before] == [("kernels", "tiny on 0 GPUs")]


def test_the_plan_says_how_far_the_number_of_generators_may_go(config_of, base, registry):
    text = base.replace("name: imitate", "name: clip") + RL.replace("replicas: 3", "replicas: {min: 2, max: 8}")
    config = config_of(text)
    assert config.stages[0].generator.config.replica_range == (2, 8)
    assert ("generators", "2 to 8, as the cluster has room") in plan_rows(config, config.stages[0], registry)


def test_the_plan_of_examples_as_printed(config_of, base, registry):
    config = config_of(base, "run.directory=/runs/x")
    assert printed(config, registry) == (
        "demo\n"
        "model            org/base (at most 1,024 tokens)\n"
        "algorithm        imitate (acme-kit 1.2)\n"
        "backend          tiny (acme-kit 1.2)\n"
        "tokenizer        hf (acme-kit 1.2)\n"
        "data             lines (acme-kit 1.2)\n"
        "step             1 examples\n"
        "optimizer steps  1 per step × 10 steps = 10\n"
        "micro-batch      at most 16,384 tokens per rank\n"
        "ranks            1 on CPU\n"
        "seed             0\n"
        "run directory: /runs/x"
    )


def test_stages_have_a_table_each_and_versions_need_a_registry(config_of, base):
    init = "init: {architecture: qwen2, hidden_size: 2048, layers: 2, heads: 4}"
    text = base.replace("path: org/base", init) + "tokenizer: {name: letters}\nstages: [{name: one}, {name: two}]\n"
    text = printed(config_of(text, "run.directory=/runs/x"), None)
    assert text.count("model            from scratch: qwen2, 2 layers of width 2,048 (at most 1,024 tokens)\n") == 2
    assert text.startswith("stage one\n")
    assert "\nexport           /runs/x/stages/two/export\n" in text
    assert "\nalgorithm        imitate (acme-kit)\n" in text
