"""No file that is read can run code, and no name in a config leads out of the run directory."""

import ast
import inspect
import os
import pickle

import pytest
from rl_core.cli.main import main
from support import ROOT

SOURCES = sorted(p for p in ROOT.glob("packages/*/src/**/*") if p.suffix == ".py" or p.name.endswith(".py.tmpl"))
KIT = "packages/plugin-kit/src/rl_plugin_kit"
IPC = "packages/torch/src/rl_torch/transports/ipc.py"
RENDERING = "packages/huggingface/src/rl_huggingface/chat_render_worker.py"
ISOLATED = "packages/isolation/src/rl_isolation/child.py"
BETWEEN_OWN_PROCESSES = {f"{KIT}/building.py", f"{KIT}/ray_worker.py", IPC, RENDERING, ISOLATED}
"""The conformance kit sends configs to processes of its own, a trainer sends handles of its memory, and the driver
sends messages to the process that renders chat templates and to processes with the user's code, which answer in JSON;
no file of others is involved."""


def calls():
    for path in SOURCES:
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield (
                        str(path.relative_to(ROOT)),
                        ast.unparse(node.func),
                        {k.arg: ast.unparse(k.value) for k in node.keywords},
                    )


def test_nothing_is_unpickled_from_files():
    unpickles = {
        "pickle.load",
        "pickle.loads",
        "cloudpickle.load",
        "cloudpickle.loads",
        "dcp.load",
        "dist_checkpointing.load",
        "joblib.load",
        "marshal.load",
        "marshal.loads",
        "shelve.open",
        "yaml.load",
        "yaml.unsafe_load",
    }
    found = [f"{path}: {function}" for path, function, _ in calls() if function in unpickles]
    assert [one for one in found if one.partition(":")[0] not in BETWEEN_OWN_PROCESSES] == []
    loads = [(path, options) for path, function, options in calls() if function == "torch.load"]
    assert [path for path, options in loads if options.get("weights_only") != "True"] == []
    assert [path for path, _, options in calls() if options.get("allow_pickle") == "True"] == []


def test_the_template_of_a_backend_unpickles_weights_only():
    lines = [line for path in SOURCES if path.suffix == ".tmpl" for line in path.read_text().splitlines()]
    loads = [line for line in lines if "torch.load(" in line]
    assert loads
    assert [line for line in loads if "weights_only=True" not in line] == []


def test_transformers_reads_weights_without_running_code():
    from transformers import PreTrainedModel

    assert inspect.signature(PreTrainedModel.from_pretrained).parameters["weights_only"].default is True


def test_code_that_comes_with_a_model_runs_only_on_request():
    from rl_core.config.sections import ModelConfig
    from rl_core.contracts.model import ModelSpec
    from rl_reward_model.config import ModelRewardConfig

    defaults = [one.model_fields["trust_remote_code"].default for one in (ModelConfig, ModelRewardConfig)]
    assert [*defaults, ModelSpec().trust_remote_code] == [False] * 3
    always = [path for path, _, options in calls() if options.get("trust_remote_code") == "True"]
    assert always == []


class Payload:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_in_place_of_a_checkpoint_file_is_not_run(tmp_path, monkeypatch):
    import torch
    from rl_core.errors import RLError
    from rl_torch.shards import Shard, read_shards

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rank-00000-000.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(RLError, match="is damaged"):
        read_shards([Shard("w", torch.zeros(2), (2,), (0,))], tmp_path)
    assert not (tmp_path / "owned").exists()


CONFIG = """\
run: {{name: {name}, steps: 1}}
model:
  init: {{architecture: qwen2, hidden_size: 16, layers: 1, heads: 2}}
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
algorithm: {{name: sft}}
data: {{name: jsonl, path: rows.jsonl}}
stages:
  - {{name: {stage}}}
"""


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "/tmp/out", ".hidden"])
@pytest.mark.parametrize("what", ["name", "stage"])
def test_names_that_would_lead_out_of_the_run_directory_are_refused(tmp_path, monkeypatch, capsys, name, what):
    monkeypatch.chdir(tmp_path)
    names = {"name": "run", "stage": "train"} | {what: f"'{name}'"}
    (tmp_path / "c.yaml").write_text(CONFIG.format(**names))
    assert main(["run", "c.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"c.yaml:{1 if what == 'name' else 9}" in said
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]
