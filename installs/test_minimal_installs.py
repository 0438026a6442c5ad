"""Teams install what they use: each combination works from wheels alone, with nothing but what is declared."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from overlay import declared
from support import ROOT

logger = logging.getLogger(__name__)
MODEL = """\
run: {name: two, steps: 2, cpus: 1}
model:
  init: {architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, ffn: 64}
  max_length: 32
tokenizer: {name: characters, vocab_size: 64}
data: {name: jsonl, path: rows.jsonl}
"""
SAMPLED = "generator: {name: hf, max_new_tokens: 4}\nrewards: [{name: exact_match}]\n"
EVERYTHING = """\
eval_data: {name: jsonl, path: rows.jsonl, limit: 4}
evaluators: [{name: accuracy, max_new_tokens: 4}]
loggers: [{name: plot}, {name: tensorboard}]
"""
SFT = "algorithm: {name: sft, sequences_per_step: 4, learning_rate: 1.0e-3}\n"
DPO = "algorithm: {name: dpo, pairs_per_step: 4, learning_rate: 1.0e-3}\n"
GRPO = "algorithm: {name: grpo, prompts_per_step: 4, group_size: 4, learning_rate: 1.0e-3}\n"
PPO = "algorithm: {name: ppo, prompts_per_step: 8, learning_rate: 1.0e-3}\n"


@dataclass(frozen=True)
class Team:
    """A combination of packages.

    Attributes:
        packages: what the team is named for.
        more: what its run needs besides: a data source, and for rollouts a generator and a reward.
        config: sections of the run.
        hidden: modules that the test's own environment has and this one must not.
        brought: plugins that those packages depend on.
    """

    packages: tuple[str, ...]
    more: tuple[str, ...]
    config: str
    hidden: tuple[str, ...]
    brought: tuple[str, ...] = ()


ALL = tuple(sorted(f"rl-{path.parent.name}" for path in ROOT.glob("packages/*/pyproject.toml")))
ELSEWHERE = (
    *("rl-generation-vllm", "rl-kernels-liger", "rl-system-metrics", "rl-tracker-common"),
    *("rl-logger-mlflow", "rl-logger-otel", "rl-logger-prometheus", "rl-logger-wandb"),
)
TEAMS = {
    "sft": Team(
        ("rl-core", "rl-algo-sft-rm", "rl-backend-fsdp2", "rl-generation-hf"),
        ("rl-data-text",),
        SFT + "backend: {name: fsdp2}\n",
        ("megatron", "tensorboard", "matplotlib", "math_verify", "pytest"),
        ("rl-isolation", "rl-rollout"),
    ),
    "grpo-megatron": Team(
        ("rl-core", "rl-algo-grpo", "rl-backend-megatron"),
        ("rl-data-text", "rl-generation-hf", "rl-reward-rule"),
        GRPO + SAMPLED + "backend: {name: megatron}\n",
        ("peft", "accelerate", "tensorboard", "matplotlib", "math_verify"),
        ("rl-isolation", "rl-rollout"),
    ),
    "dpo": Team(
        ("rl-core", "rl-algo-dpo", "rl-backend-fsdp2"),
        ("rl-data-text",),
        DPO + "backend: {name: fsdp2}\n",
        ("megatron", "tensorboard", "matplotlib", "math_verify", "pytest", "rl_rollout"),
    ),
    "sft-kernels-cpu": Team(
        ("rl-core", "rl-algo-sft-rm", "rl-backend-fsdp2", "rl-kernels-cpu"),
        ("rl-data-text",),
        SFT + "backend: {name: fsdp2, kernels: [cpu]}\n",
        ("megatron", "tensorboard", "matplotlib", "math_verify", "pytest", "triton"),
    ),
    # The others have environments of their own: CUDA, Triton, the libraries of trackers.
    "everything": Team(
        tuple(package for package in ALL if package not in ELSEWHERE),
        (),
        PPO + SAMPLED + "backend: {name: fsdp2}\n" + EVERYTHING,
        ("vllm", "hypothesis"),
    ),
}


def write_config(folder: Path, team: Team) -> None:
    row = {"completion": "5", "answer": "5", "chosen": "5", "rejected": "6"}
    lines = (json.dumps({"prompt": f"{number}+3="} | row) for number in range(8))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "two.yaml").write_text(MODEL + team.config)


def plugins(installation) -> dict[str, str]:
    """Package → status, as `rl plugins` has it."""
    return {one["package"]: one["status"] for one in json.loads(installation.rl("plugins", "--json"))["plugins"]}


@pytest.mark.parametrize("name", TEAMS)
def test_a_team_trains_with_the_packages_it_installed(name, installation):
    team = TEAMS[name]
    write_config(installation.folder, team)
    installation.install(*team.packages)
    # Libraries are no plugins, but for the one that checks model folders; every backend brings it.
    libraries = {"rl-algo-common", "rl-ray", "rl-secrets", "rl-torch", "rl-kernels-cpu"}
    expected = {*team.packages, *team.brought, "rl-huggingface"} - libraries
    assert plugins(installation) == dict.fromkeys(expected, "ok")
    for module in team.hidden:
        assert module not in installation.modules(), f"{module} is not declared and yet can be imported"
    if team.more:
        said = installation.rl("check", "two.yaml", code=2)
        assert "data.name: data source 'jsonl' is not installed\n    pip install rl-data-text\n" in said
        installation.install(*team.more)
        brought = {"rl-isolation"}  # rl-data-text takes functions
        assert plugins(installation) == dict.fromkeys(expected | set(team.more) | brought, "ok")
        assert ("rl_rollout" in installation.modules()) == ("rl-rollout" in team.brought)
    assert "config ok" in installation.rl("check", "two.yaml")
    installation.rl("run", "two.yaml")
    rows = [json.loads(line) for line in Path(installation.folder, "runs/two/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2]


def test_rl_core_alone_is_small_and_has_no_pytorch(installation):
    """Downloaded for real, with pip's own resolution, from wheels alone."""
    downloads = installation.folder / "downloads"
    installation.download("rl-core", downloads)
    sizes = {path.name: path.stat().st_size for path in downloads.iterdir()}
    total = sum(sizes.values()) / 1e6
    logger.info("rl-core with its dependencies: %d wheels, %.0f MB", len(sizes), total)
    assert total < 150, sizes
    installation.pip("install", "--quiet", "--no-index", "--find-links", str(downloads), "rl-core")
    assert plugins(installation) == {"rl-core": "ok"}
    assert not {"torch", "transformers", "tokenizers", "datasets"} & installation.modules()
    write_config(installation.folder, TEAMS["sft"])
    said = installation.rl("check", "two.yaml", code=2)
    for package in ("rl-algo-sft-rm", "rl-backend-fsdp2", "rl-data-text"):
        assert f"    pip install {package}\n" in said
    assert "pip install rl-plan" in installation.rl("schema", code=2)


def test_what_is_linked_follows_extras_and_markers(wheels):
    core = declared(wheels, ["rl-core"])
    assert {"ray", "pydantic", "numpy"} <= core
    assert not {"torch", "transformers", "pytest"} & core
    assert "pytest" in declared(wheels, ["rl-core[testing]"])
    assert "latex2sympy2-extended" in declared(wheels, ["rl-reward-math"])
    assert not any(metadata.version(name) is None for name in core)
