"""The GPU check runs where there is no GPU, needs few packages, and loses nothing to a case that fails or hangs."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import pytest
from support import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "check.py"
ABSENT = ("pydantic", "ray", "pluggy", "datasets")
"""Packages that a GPU machine need not have."""


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_every_case_holds_on_the_cpu_without_pydantic_or_ray(tmp_path):
    for name in ABSENT:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} is not there')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--output", str(tmp_path / "found.json")],
        env={**environment, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = json.loads((tmp_path / "found.json").read_text())
    assert {c["name"] for c in results["cases"] if c["status"] == "skipped"} == {
        "compiled",
        "train_compiled",
        "train_1.5b",
        "generate_1.5b",
    }
    compared = {c["name"]: len(c["found"]) for c in results["cases"] if c["part"] == "equality"}
    assert all(count for name, count in compared.items() if name != "compiled"), compared
    steps = {line["what"] for c in results["cases"] if c["part"] == "speed" for line in c["found"]}
    assert steps == {"sft", "grpo", "dpo", "generate", "output projection"}
    assert results["facts"]["versions"]["torch"]
    assert "| losses | " in ended.stdout


def test_losses_take_the_options_that_algorithms_give_them():
    from gpu import batches
    from rl_algo_dpo.config import DpoConfig
    from rl_algo_dpo.losses import LOSSES
    from rl_algo_grpo.config import GrpoConfig
    from rl_algo_grpo.grpo import Grpo
    from rl_algo_ppo.config import PpoConfig
    from rl_algo_ppo.ppo import Ppo
    from rl_algo_sft_rm.config import SftConfig
    from rl_algo_sft_rm.sft import training_loss

    ppo = Ppo(PpoConfig(name="ppo"))
    expected = {
        "sft": training_loss(SftConfig(name="sft")),
        "sft smoothed": training_loss(SftConfig(name="sft", label_smoothing=0.1, z_loss=1e-2)),
        "grpo": Grpo(GrpoConfig(name="grpo")).loss(1.0),
        "ppo": ppo.policy_loss(1.0),
        "ppo value": ppo.value_loss(),
    }
    for name, loss in expected.items():
        assert batches.LOSSES[name].function == loss.function
        assert set(batches.LOSSES[name].options) == set(loss.options)
    for name in LOSSES:
        more = {"label_smoothing": 0.1} if name == "robust" else {}
        options = {"loss", "sft_coefficient", *DpoConfig(name="dpo", loss=name, **more).loss_options()}
        assert set(batches.LOSSES[f"dpo {name}"].options) == options
    kto = {"desirable", "undesirable", *DpoConfig(name="dpo", loss="kto").loss_options()}
    assert set(batches.LOSSES["dpo kto"].options) == kto


def fields(settings):
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}


def test_the_settings_are_the_fields_and_defaults_of_the_config_models():
    from gpu.settings import Fsdp2Settings, HfSettings, ParallelSettings
    from rl_backend_fsdp2.config import Fsdp2Config, ParallelConfig
    from rl_generation_hf.config import HfGeneratorConfig

    assert fields(ParallelSettings()) == ParallelConfig().model_dump()
    config = Fsdp2Config(name="fsdp2").model_dump(exclude={"name", "parallel"})
    assert {k: v for k, v in fields(Fsdp2Settings()).items() if k != "parallel"} == config
    generator = HfGeneratorConfig(name="hf")
    assert fields(HfSettings()) == {name: getattr(generator, name) for name in fields(HfSettings())}


def test_the_settings_choose_attention_and_rows_as_the_config_model_does():
    from gpu.settings import Fsdp2Settings, ParallelSettings
    from rl_backend_fsdp2.config import Fsdp2Config

    choices = {
        "packing": ("auto", "packed", "padded"),
        "attention": ("auto", "dense", "varlen"),
        "precision": ("fp32", "bf16"),
        "compile": (False, True),
        "cp": (1, 2),
    }
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        cp = options.pop("cp")
        ours = Fsdp2Settings(**options, parallel=ParallelSettings(cp=cp))
        config = Fsdp2Config(name="fsdp2", **options, parallel={"cp": cp})
        for cuda in (False, True):
            assert ours.uses_varlen(cuda=cuda) == config.uses_varlen(cuda=cuda), options
        assert ours.layout_fixed_by == config.layout_fixed_by, options


def command_with(tmp_path, cases):
    """The check, with other cases."""
    copy = tmp_path / "gpu"
    (copy / "cases").mkdir(parents=True)
    for path in (ROOT / "benchmarks" / "gpu").glob("*.py"):
        (copy / path.name).write_text(path.read_text())
    imports = "import os, time\nfrom gpu.registry import Comparison, Skip, case\n"
    (copy / "cases" / "__init__.py").write_text(imports + cases)
    return [sys.executable, str(copy / "check.py"), "--device", "cpu"]


def run(command, tmp_path, *more):
    output = tmp_path / "found.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [*command, "--output", str(output), *more], env=environment, capture_output=True, text=True, timeout=300
    )
    return ended, json.loads(output.read_text())["cases"]


BAD_CASES = """
@case("equality", seconds=9)
def fails(machine):
    yield Comparison("first", 0.0, 0.0)
    raise RuntimeError("a kernel failed")

@case("equality", seconds=9)
def dies(machine):
    os._exit(7)
    yield

@case("equality", seconds=9)
def is_wrong(machine):
    yield Comparison("this", 2.0, 1.0)
    yield Comparison("that", float("nan"), 1.0)

@case("equality", seconds=9)
def cannot(machine):
    raise Skip("no such device")
    yield

@case("equality", seconds=9)
def holds(machine):
    yield Comparison("all", 0.5, 1.0)

@case("equality", seconds=0.2)
def hangs(machine):
    time.sleep(1000)
    yield
"""


@pytest.mark.slow
def test_a_case_that_fails_dies_or_hangs_leaves_the_others_their_results(tmp_path):
    ended, cases = run(command_with(tmp_path, BAD_CASES), tmp_path)
    assert ended.returncode == 1
    found = {c["name"]: c for c in cases}
    assert {name: c["status"] for name, c in found.items()} == {
        "fails": "failed",
        "dies": "died",
        "is_wrong": "wrong",
        "cannot": "skipped",
        "holds": "ok",
        "hangs": "late",
    }
    assert [f["what"] for f in found["fails"]["found"]] == ["first"]
    assert "RuntimeError: a kernel failed" in found["fails"]["detail"]
    assert "ended with 7" in found["dies"]["detail"]
    assert [f["holds"] for f in found["is_wrong"]["found"]] == [False, False]
    assert found["cannot"]["detail"] == "no such device"
    assert "this: 2 is more than 1" in ended.stdout
    assert "| cannot | 0 | | | skipped: no such device | " in ended.stdout


class Worker:
    """Knows one case, and runs none."""

    is_running = True

    def __init__(self, device, size):
        self.facts = {"device": "CPU", "versions": {}}

    def start(self, seconds):
        return "facts", {"facts": self.facts, "cases": [{"name": "losses", "part": "equality", "limit_s": 9}]}

    def stop(self):
        pass


def test_without_time_nothing_is_run_and_nothing_holds(tmp_path, monkeypatch):
    from gpu import check

    monkeypatch.setattr(check, "Worker", Worker)
    output = tmp_path / "found.json"
    arguments = ["--device", "cpu", "--only", "losses", "--budget-minutes", "0", "--output", str(output)]
    assert check.main(arguments) == 1
    assert [c["status"] for c in json.loads(output.read_text())["cases"]] == ["skipped for time"]


@pytest.mark.parametrize("difference", [1.5, float("nan"), float("inf")])
def test_a_difference_beyond_its_tolerance_does_not_hold(difference):
    from gpu.registry import Comparison

    assert not Comparison("x", difference, 1.0).holds
    assert Comparison("x", 1.0, 1.0).holds


def test_what_packages_lack_is_said_before_anything_starts(monkeypatch, capsys):
    from gpu import check

    monkeypatch.setattr(check, "find_spec", lambda name: None if name in ("peft", "safetensors") else object())
    assert check.main(["--device", "cpu"]) == 3
    assert capsys.readouterr().err == "error: not installed: peft, safetensors\n    pip install peft safetensors\n"


def test_an_unknown_case_is_refused(monkeypatch, capsys):
    from gpu import check

    monkeypatch.setattr(check, "Worker", Worker)
    assert check.main(["--device", "cpu", "--only", "no_such_case"]) == 2
    assert capsys.readouterr().err == "error: no case 'no_such_case'\n    --list shows them all\n"


def test_rounding_follows_the_dtype_and_the_number_of_roundings():
    import torch
    from gpu.registry import rounding

    assert rounding(torch.bfloat16, layers=4, width=256) == pytest.approx(2**-7 * 40**0.5)
    assert rounding(torch.float32, layers=4, width=256) == pytest.approx(2**-23 * (40 * 256) ** 0.5)
    assert rounding(torch.float16, layers=1, width=1, passes=2) == pytest.approx(2**-10 * 20**0.5)


@pytest.mark.slow
def test_without_a_gpu_the_check_says_so(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "found.json")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 3
    assert " sees no GPU\n    add --device cpu, or see nvidia-smi\n" in ended.stderr
