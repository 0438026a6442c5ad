"""Every variant of the GRPO family lifts the quickstart's reward, from one supervised start."""

import pytest
import yaml
from support import EXAMPLES, metrics_of

pytestmark = pytest.mark.slow

VARIANTS = {
    "grpo": {},
    "dr_grpo": {"constant_length": 4},
    "dapo": {"overlong": {"max_tokens": 8, "buffer_tokens": 4}},
    "gspo": {},
    "cispo": {},
    "rloo": {},
    "reinforce++": {},
    "reinforce++-baseline": {},
}
STEPS = 15


def config(run):
    """The quickstart's SFT stage, then each variant from its export."""
    quickstart = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    sft, grpo = quickstart.pop("stages")
    sft["data"]["function"] = grpo["data"]["function"] = str(EXAMPLES / "add2x.py")
    sft["data"]["function"] += ":demonstrations"
    grpo["data"]["function"] += ":questions"
    quickstart["eval_data"]["function"] = f"{EXAMPLES}/add2x.py:questions"
    quickstart["run"] |= {"name": "variants", "directory": str(run)}
    quickstart["loggers"] = []
    sft["run"] = {"steps": 800}
    stages = [sft | {"evaluators": [{"name": "accuracy", "max_new_tokens": 4}]}]
    for preset, more in VARIANTS.items():
        algorithm = grpo["algorithm"] | {"preset": preset} | more
        name = preset.replace("++", "-pp")
        evaluators = [{"name": "accuracy", "max_new_tokens": 4}]
        stages.append(grpo | {"name": name, "algorithm": algorithm, "evaluators": evaluators, "run": {"steps": STEPS}})
    return quickstart | {"stages": stages}


def test_every_variant_lifts_the_reward(rl, tmp_path):
    path = tmp_path / "variants.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path / "run")))
    rl("run", path, timeout=900)
    rows = metrics_of(tmp_path / "run")
    for preset in VARIANTS:
        own = {r["step"]: r for r in rows if r["stage"] == preset.replace("++", "-pp")}
        assert own[0]["eval/accuracy"] < 0.75, preset
        assert own[STEPS]["eval/accuracy"] > 0.85, preset
        assert own[STEPS]["rollout/reward_mean"] > own[1]["rollout/reward_mean"], preset
