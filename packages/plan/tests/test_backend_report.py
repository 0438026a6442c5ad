"""What ``rl check`` shows about memory and ratings."""

from __future__ import annotations

import io
from textwrap import dedent

import pytest
from rating_kit import GIB, TEXT, Rates, rated, registry_of
from rich.console import Console
from rl_core import machine
from rl_core.contracts.rating import MemoryEstimate
from rl_core.preflight.check import check
from rl_plan.memory import size

NAMED = TEXT.replace("name: auto", "name: roomy\n      max_tokens_per_microbatch: 1024")


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch):
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: 80 * GIB)
    monkeypatch.setattr(machine, "host_memory_bytes", lambda: 4 * GIB)


@pytest.fixture
def checked(folder):
    def run(*overrides, text=NAMED, packages=None):
        (folder / "c.yaml").write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return check("c.yaml", overrides, registry_of(packages or {"rl-roomy": None, "rl-small": None}))

    return run


def shown(result) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(result.plans[0].render(result.config, None))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_a_named_backend_has_its_memory_in_the_plan(checked):
    assert (
        "\nranks            1 on CPU\n"
        "memory           1.0 GiB per rank at the peak of 4.0 GiB on this machine; parameters 1 MiB, gradients 1 MiB, "
        "optimizer 1 MiB, activations 1.0 GiB,\n"
        "                 logits 64 MiB\n"
        "seed             0\n"
    ) in shown(checked())


def test_auto_shows_all_ratings_with_reasons_and_memory(checked):
    estimate = MemoryEstimate(1, 1, 1, 1, 1, peak=3 * GIB)
    packages = {
        "rl-roomy": Rates(rated("roomy", 70, "made for it", "one rank", memory=estimate)),
        "rl-small": Rates(rated("small", 0, "needs a GPU")),
    }
    text = shown(checked("run.directory=/runs/x", text=TEXT, packages=packages))
    assert text.endswith(
        "backend auto\n"
        "backend           score  memory   reasons\n"
        "roomy (rl-roomy)     70  3.0 GiB  made for it; one rank\n"
        "small (rl-small)      0  unknown  needs a GPU\n"
        "run directory: /runs/x"
    )


def test_a_backend_without_estimates_has_no_line(checked):
    result = checked("backend.name=small")
    assert (result.plans[0].backends, "memory" in shown(result)) == ({}, False)


def test_a_chosen_backend_without_estimates_has_a_table_and_no_line(checked):
    result = checked(text=TEXT, packages={"rl-small": Rates(rated("small", 50, "good"))})
    assert result.plans[0].backends["train"].memory_line() is None
    assert "small (rl-small)     50  unknown  good" in shown(result)


def test_a_model_whose_size_is_unknown_says_so(checked):
    result = checked("model={path: org/unseen}", "tokenizer={name: hf}")
    assert "memory           unknown: org/unseen is not in the local Hugging Face cache\n" in shown(result)


def test_what_had_to_be_assumed_stands_below_the_estimate(checked):
    text = shown(checked("model.init.extra={}"))
    assert "\n                 a vocabulary of 32,768 is assumed: the tokenizer's is not known yet\n" in text


def test_more_than_the_machine_has_is_a_warning_that_names_the_setting(checked):
    result = checked("backend.max_tokens_per_microbatch=8192", "backend.parallel.dp=1")
    assert [str(problem) for problem in result.problems] == [
        "command line: backend.max_tokens_per_microbatch: training needs an estimated 8.0 GiB, "
        "there are 4.0 GiB on this machine\n"
        "    lower backend.max_tokens_per_microbatch (now 8,192), or set backend.offload: true"
    ]
    assert result.problems[0].severity == "warning"
    assert result.config is not None


def test_a_gpu_is_compared_with_one_rank(checked):
    enough = checked("backend.max_tokens_per_microbatch=8192", "run.gpus=8")
    assert (enough.problems, enough.plans[0].backends["train"].memory_line()[:36]) == (
        (),
        "8.0 GiB per rank at the peak of 80.0",
    )
    assert [str(p) for p in checked("backend.max_tokens_per_microbatch=99999", "run.gpus=8").problems] == [
        "command line: backend.max_tokens_per_microbatch: training needs an estimated 97.7 GiB, "
        "there are 80.0 GiB on the GPU\n"
        "    lower backend.max_tokens_per_microbatch (now 99,999), or set backend.offload: true"
    ]


def test_a_model_that_never_fits_needs_more_than_shorter_micro_batches(checked):
    big = "model.init={architecture: llama, hidden_size: 4096, layers: 32, heads: 32, extra: {vocab_size: 100}}"
    problems = checked(big, "run.gpus=1", "backend.offload=true").problems
    assert [str(p) for p in problems] == [
        "c.yaml:6: backend.max_tokens_per_microbatch: training needs an estimated 129.0 GiB, "
        "there are 80.0 GiB on the GPU\n"
        "    use more GPUs (run.gpus, run.nodes), a smaller model, or model.adapter"
    ]


def test_without_a_driver_or_on_another_cluster_there_is_no_warning(checked, monkeypatch):
    assert checked("backend.max_tokens_per_microbatch=8192", "run.address=auto").problems == ()
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: None)
    assert checked("backend.max_tokens_per_microbatch=99999", "run.gpus=8").problems == ()


def test_an_estimate_that_fails_is_a_warning_that_names_the_package(checked):
    result = checked("backend.parallel.dp=13")
    assert [str(problem) for problem in result.problems] == [
        "c.yaml:4: backend: backend 'roomy' (package rl-roomy 3.1): memory_per_rank() failed, "
        "so memory is not estimated: ZeroDivisionError: division by zero"
    ]
    assert result.config is not None
    assert result.plans[0].backends["train"].memory_line() == "unknown"


def test_the_method_of_an_older_packages_config_is_still_asked(checked):
    with pytest.warns(DeprecationWarning, match="backend 'old' .package rl-old.: memory_per_rank of a config is dep"):
        old = checked("backend.name=old", packages={"rl-old": None}).plans[0].backends["train"]
    assert old.memory == checked().plans[0].backends["train"].memory is not None


def test_a_stage_that_starts_from_an_export_has_the_shape_of_that_stage(checked):
    stages = 'stages: [{name: one}, {name: two, model: {path: "${stages.one.export}"}}]\n'
    result = checked(text=NAMED + "    " + stages)
    assert [str(problem) for problem in result.problems] == []
    one, two = (result.plans[0].backends[name] for name in ("one", "two"))
    assert two.job.shape == one.job.shape
    assert two.memory == one.memory


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 MiB"), (700 * 2**20, "700 MiB"), (GIB, "1.0 GiB"), (1234 * GIB, "1,234.0 GiB")]
)
def test_sizes_are_written_for_people(count, text):
    assert size(count) == text


def test_host_memory_is_the_containers_where_that_is_less(tmp_path, monkeypatch):
    monkeypatch.undo()
    whole = machine.host_memory_bytes(tmp_path)
    assert whole is not None
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine.host_memory_bytes(tmp_path) == 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.host_memory_bytes(tmp_path) == whole


@pytest.mark.parametrize(
    ("script", "found"),
    [("echo 81559; echo 40960", 40960 * 2**20), ("exit 9", None), ("echo '[N/A]'", None), ("true", None)],
)
def test_the_smallest_gpu_counts_and_a_silent_driver_is_none(tmp_path, monkeypatch, script, found):
    monkeypatch.undo()
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.gpu_memory_bytes() == found


def test_a_machine_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: asked.append(1) or 5)
    one = machine.Machine()
    assert (one.gpu_memory_bytes, one.gpu_memory_bytes, len(asked)) == (5, 5, 1)
