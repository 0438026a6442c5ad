"""Runs of several stages: what one hands to the next, and gates between them."""

import json

import pytest
from support import metrics_of

pytestmark = pytest.mark.slow

STAGES = """\
run: {{name: two, directory: {run}, steps: 4, cpus: 1}}
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
algorithm: {{name: sft, sequences_per_step: 8, learning_rate: 1.0e-2}}
data: {{name: jsonl, path: {data}}}
eval_data: {{name: jsonl, path: {data}, limit: 8}}
evaluators: [{{name: loss}}]
stages:
  - name: first
    model: {{init: {{architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, ffn: 64}}, max_length: 16}}
    run: {{require: "eval/loss < {bound}"}}
  - name: second
    model: {{path: "${{stages.first.export}}", max_length: 16}}
    tokenizer: {{name: hf}}
    run: {{steps: 2}}
  - name: measure
    model: {{path: "${{stages.second.export}}", max_length: 16}}
    tokenizer: {{name: hf}}
    run: {{steps: 0, require: ["eval/loss < {bound}", "eval/perplexity >= 1"]}}
"""


@pytest.fixture
def config(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(40)))

    def write(bound):
        path = tmp_path / "two.yaml"
        path.write_text(STAGES.format(run=tmp_path / "run", data=data, bound=bound))
        return path

    return write


def test_stages_hand_their_model_on_and_the_last_one_only_measures(config, rl, tmp_path):
    rl("run", config(10))
    rows = metrics_of(tmp_path / "run")
    loss = {(r["stage"], r["step"]): r["eval/loss"] for r in rows if "eval/loss" in r}
    assert loss["second", 0] == pytest.approx(loss["first", 4], rel=1e-6)
    assert loss["measure", 0] == pytest.approx(loss["second", 2], rel=1e-6)
    assert [(r["stage"], r["step"]) for r in rows] == [
        *[("first", i) for i in range(5)],
        *[("second", i) for i in range(3)],
        ("measure", 0),
    ]
    stages = tmp_path / "run" / "stages"
    assert (stages / "second" / "export" / "model.safetensors").exists()
    assert not (stages / "measure" / "export").exists()
    done = rl("resume", tmp_path / "run", check=False)
    assert done.returncode == 1
    assert "nothing to do: every stage" in done.stderr


def test_a_failed_gate_stops_the_pipeline_with_exit_code_1(config, rl, tmp_path):
    done = rl("run", config(0.001), check=False)
    assert done.returncode == 1
    last = metrics_of(tmp_path / "run")[-1]["eval/loss"]
    assert (
        "error: stage 'first' does not meet what it requires, so the run stops here\n"
        f"    eval/loss < 0.001: it is {last:.6g}\n"
    ) in done.stderr
    assert {r["stage"] for r in metrics_of(tmp_path / "run")} == {"first"}
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
