from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from rl_algo_grpo.config import PRESETS, GrpoConfig
from rl_core.discovery.registry import load_registry
from rl_core.preflight.check import check
from rl_plan.table import plan_rows

NEEDED = {"dr_grpo": {"constant_length": 64}, "dapo": {"overlong": {"max_tokens": 64}}}
"""What only the task can know."""


def preset(name: str, **fields) -> GrpoConfig:
    return GrpoConfig(name="grpo", preset=name, **{**NEEDED.get(name, {}), **fields})


def test_the_papers_values():
    grpo = preset("grpo")
    assert (grpo.loss_reduction, grpo.advantage_scale, grpo.kl.coefficient, grpo.kl.estimator, grpo.kl.placement) == (
        "sequence",
        "std",
        0.04,
        "k3",
        "loss",
    )
    dr_grpo = preset("dr_grpo")
    assert (dr_grpo.loss_reduction, dr_grpo.advantage_scale, dr_grpo.kl.coefficient) == ("constant", "none", 0)
    dapo = preset("dapo")
    assert (dapo.clip_low, dapo.clip_high, dapo.loss_reduction, dapo.kl.coefficient) == (0.2, 0.28, "token", 0)
    assert (dapo.dynamic_sampling, dapo.overlong.mode) == (True, "shape")
    gspo = preset("gspo")
    assert (gspo.loss, gspo.clip_low, gspo.clip_high, gspo.loss_reduction) == ("gspo", 3e-4, 4e-4, "sequence")
    cispo = preset("cispo")
    assert (cispo.loss, cispo.clip_low, cispo.clip_high, cispo.loss_reduction) == ("cispo", 1.0, 4.0, "token")
    rloo = preset("rloo")
    assert (rloo.advantage, rloo.advantage_scale, rloo.loss, rloo.loss_reduction, rloo.constant_length) == (
        "rloo",
        "none",
        "reinforce",
        "constant",
        1,
    )
    assert (rloo.kl_in_reward, rloo.kl.estimator) == (True, "k1")
    plus = preset("reinforce++")
    assert (plus.advantage, plus.loss, plus.kl_in_reward, plus.kl.estimator) == ("reinforce++", "clip", True, "k1")
    baseline = preset("reinforce++-baseline")
    assert (baseline.advantage, baseline.kl_in_loss, baseline.kl.estimator) == ("reinforce++-baseline", True, "k2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dr_grpo", "loss_reduction constant needs constant_length; set it to the generator's max_new_tokens"),
        (
            "dapo",
            "overlong.mode shape needs overlong.max_tokens; set it to the generator's max_new_tokens, "
            "or set overlong.mode: none",
        ),
    ],
)
def test_a_preset_asks_for_what_only_the_task_can_know(name, message):
    with pytest.raises(ValidationError) as error:
        GrpoConfig(name="grpo", preset=name)
    assert [e["msg"] for e in error.value.errors()] == [f"Value error, {message}"]


@pytest.mark.parametrize("name", PRESETS)
def test_any_preset_can_be_overridden_in_any_direction(name):
    """Values of the preset that no longer do anything are not held against the user."""
    losses, advantages = ("clip", "gspo", "cispo", "reinforce"), ("group", "rloo", "reinforce++")
    for loss, advantage, reduction in itertools.product(losses, advantages, ("token", "sequence")):
        built = preset(name, loss=loss, advantage=advantage, loss_reduction=reduction, **_without_needed(name))
        assert (built.loss, built.advantage, built.loss_reduction) == (loss, advantage, reduction)
    assert not preset(name, kl={"coefficient": 0}).uses_reference
    assert preset(name, kl={"coefficient": 0.5}).kl.coefficient == 0.5


def _without_needed(name: str) -> dict:
    return {"dr_grpo": {"constant_length": None}, "dapo": {"overlong": {"mode": "none"}}}.get(name, {})


def test_a_field_the_user_adds_to_a_preset_must_still_do_something():
    with pytest.raises(ValidationError) as error:
        preset("rloo", clip_low=0.1)
    assert [e["msg"] for e in error.value.errors()] == [
        "Value error, clip_low has no effect with loss reinforce; remove clip_low"
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_with_a_preset_survives_being_written_and_read(name):
    built = preset(name, kl={"coefficient": 0})
    again = GrpoConfig.model_validate_json(built.model_dump_json(exclude_unset=True))
    assert again == built


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValidationError, match=r"unknown preset 'ppo'; choose one of grpo, dr_grpo, dapo, gspo, cispo"):
        GrpoConfig(name="grpo", preset="ppo")


CONFIG = """\
model: {{init: {{architecture: qwen2, hidden_size: 16, layers: 1, heads: 2}}, max_length: 128}}
tokenizer: {{name: characters, vocab_size: 64}}
data: {{name: jsonl, path: rows.jsonl}}
algorithm: {{name: grpo, preset: {name}{more}}}
backend: {{name: fsdp2}}
generator: {{name: hf, max_new_tokens: 64}}
rewards: [{{name: exact_match}}]
run: {{steps: 1}}
"""


@pytest.mark.parametrize("name", PRESETS)
def test_rl_check_accepts_and_shows_a_preset(name, tmp_path: Path):
    more = {"dr_grpo": ", constant_length: 64", "dapo": ", overlong: {max_tokens: 64}"}.get(name, "")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(name=name, more=more))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "answer": "2"}\n')
    registry = load_registry()
    result = check(path, [], registry)
    assert [str(problem) for problem in result.problems] == []
    rows = dict(plan_rows(result.config, result.config.stages[0], registry))
    assert rows["preset"].startswith(f"{name}: ")
    flat = {key for key in PRESETS[name] if key not in ("kl", "overlong")}
    assert flat <= set(re.findall(r"[a-z_]+(?= )", rows["preset"]))
    assert ("kl.in" in rows["preset"]) == ("kl" in PRESETS[name])
