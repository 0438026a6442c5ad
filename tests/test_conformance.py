"""Every package of this repository passes the kit that third-party authors use."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cached_property

import pytest
from rl_core.discovery.registry import load_registry
from rl_plugin_kit.building import given_to
from rl_plugin_kit.conformance import PluginConformance
from rl_plugin_kit.letters import LetterTokenizer
from rl_plugin_kit.outcome import outcomes, rules
from rl_plugin_kit.ray_worker import check_arrival
from rl_plugin_kit.rows import questions, write_questions
from rl_plugin_kit.suites import RewardConformance, suite_of
from rl_plugin_kit.tiny_run import check_tiny_run
from support import ROOT

ELSEWHERE = (
    *("generation-vllm", "logger-mlflow", "logger-otel", "logger-prometheus", "logger-wandb"),
    "system-metrics",
)
PLUGINS = sorted(
    f"rl-{path.parent.name}"
    for path in (ROOT / "packages").glob("*/pyproject.toml")
    if "rl_core.plugins" in path.read_text()
    # They have environments of their own, where their own tests run the kit.
    and path.parent.name not in ELSEWHERE
)
TOGETHER = ("test_a_ray_worker_receives_its_config_and_builds_it", "test_a_tiny_run_continues_exactly_where_it_stopped")
"""Rules that start processes: here one worker takes all components, and there is one run."""


ENVIRONMENTS = '''
from rl_core.contracts.environment import Turn


def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


class Echo:
    def start(self, row, seed):
        return None

    def step(self, state, conversation):
        return Turn(messages=[{"role": "user", "content": str(conversation[-1]["content"])}], done=False)
'''


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Component → values for its fields, where some have no default or a smaller example is quicker."""
    folder = tmp_path_factory.mktemp("conformance")
    rows = [{name: value for name, value in row.items() if name != "__where__"} for row in questions()]
    datasets, parquet = pytest.importorskip("datasets"), folder / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(parquet)
    datasets.Dataset.from_list(rows).save_to_disk(folder / "dataset")
    reward_model = folder / "reward-model"
    save_reward_model(reward_model)
    return {
        "data_source/jsonl": {"path": str(write_questions(folder / "rows.jsonl"))},
        "parquet": {"path": str(parquet)},
        "huggingface": {"path": str(folder / "dataset")},
        "data_source/python": {"function": "rl_plugin_kit.rows:questions"},
        "regex": {"pattern": "[0-9]"},
        "function": {"function": f"{rewards(folder)}:lengths"},
        "model": {"path": str(reward_model)},
        "tools": {"tools": [f"{environments(folder)}:double"]},
        "environment/python": {"class": f"{environments(folder)}:Echo"},
        "grpo": {"group_size": 4, "prompts_per_step": 8},
    }


def environments(folder):
    path = folder / "conformance_environments.py"
    path.write_text(ENVIRONMENTS)
    return path


def rewards(folder):
    path = folder / "conformance_rewards.py"
    path.write_text("def lengths(samples):\n    return [float(len(sample.completion)) for sample in samples]\n")
    return path


def save_reward_model(folder):
    """A random classifier of one label, with a tokenizer."""
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    registry = load_registry()
    component = registry.find("tokenizer", "characters").component
    tokenizer = registry.resolve(component.factory)(registry.resolve(component.config)(name="characters"))
    tokenizer.load(None, [*questions(), {"prompt": "The answer is boxed", "completion": "3."}])
    tokenizer.save(str(folder))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=tokenizer.vocab_size, intermediate_size=16, num_labels=1, pad_token_id=0, **shape)
    Qwen2ForSequenceClassification(config).save_pretrained(folder)


def components():
    """Every installed component of this repository's packages, as ``(kind, name)``."""
    found = [one for one in load_registry().components() if one.package in {"rl-core", *PLUGINS}]
    return [(one.component.kind, one.component.name) for one in found]


class OneRewardModel(RewardConformance):
    """Each one starts workers that import PyTorch, so one is asked everything; its own tests close and reopen it."""

    component = "model"

    @cached_property
    def reward(self):
        return self.build()

    @contextmanager
    def _built(self):
        yield self.reward


@pytest.mark.parametrize("name", PLUGINS)
def test_a_package_keeps_the_rules_of_packages(name, fields):
    suite = type("Suite", (PluginConformance,), {"package": name, "settings": fields})
    assert len(rules(suite)) >= 13
    assert [one for one in outcomes(suite) if one.status != "ok"] == []


@pytest.mark.parametrize(("kind", "name"), components())
def test_a_component_keeps_the_promises_of_its_kind(kind, name, fields, request):
    if (kind, name) == ("reward", "model"):
        request.getfixturevalue("cluster")  # it serves its model from workers
    given = {"component": name, "fields": given_to(load_registry().find(kind, name).component, fields)}
    if (kind, name) == ("tokenizer", "hf"):
        given["model_path"] = fields["model"]["path"]
    suite = type("Suite", (suite_of(kind),), given)
    left_out = TOGETHER
    if (kind, name) == ("reward", "model"):
        suite, left_out = OneRewardModel, (*TOGETHER, "test_it_can_be_built_again_after_it_was_closed")
        OneRewardModel.fields = given["fields"]
    found = list(outcomes(suite, without=left_out))
    assert len(found) == len(rules(suite)) - len(left_out) >= 3
    assert [one for one in found if one.status != "ok"] == []


@pytest.mark.slow
def test_a_ray_worker_receives_and_builds_every_component(fields, cluster):
    registry = load_registry()
    arriving = []
    for kind, name in components():
        component = registry.find(kind, name).component
        given = given_to(component, fields)
        arriving.append((f"{kind} {name!r}", component, registry.resolve(component.config)(name=name, **given)))
    assert len(arriving) > 20
    check_arrival(arriving)


@pytest.mark.slow
def test_a_tiny_run_continues_exactly_where_it_stopped(fields, cluster, tmp_path):
    """On examples, which needs one worker; test_resume.py and test_plugin_new.py run the other kinds."""
    more = {
        "tokenizer": {"name": "characters"},
        "data": {"name": "jsonl", **fields["data_source/jsonl"]},
        "eval_data": {"name": "parquet", **fields["parquet"]},
        "evaluators": [{"name": "loss", "every": 1}],
        "loggers": [{"name": "tensorboard"}],
    }
    metrics = check_tiny_run("algorithm 'sft'", "algorithm", {"name": "sft"}, more, tmp_path)
    assert metrics["step"] == 2
    assert "eval/loss" in json.loads((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_tokenizer_of_the_kit_keeps_what_it_asks_of_others(tmp_path):
    class Letters(suite_of("tokenizer")):
        component = "letters"

        def build(self):
            return LetterTokenizer()

    assert [one for one in outcomes(Letters, without=TOGETHER) if one.status != "ok"] == []
