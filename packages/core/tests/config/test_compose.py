"""extends and stages."""

from __future__ import annotations

import time

import pytest
from rl_core.preflight.check import check


@pytest.fixture
def write(folder):
    def write(name: str, text: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return write


def test_a_file_wins_over_what_it_extends_and_lists_are_replaced(write, base, config_of):
    write("base.yaml", base + "loggers: [{name: remote, project: a}, {name: remote, project: b}]\n")
    config = config_of("extends: base.yaml\nrun: {steps: 3}\nloggers: [{name: remote, project: c}]\n")
    stage = config.stages[0]
    assert (stage.run.steps, config.name) == (3, "demo")
    assert [logger.config.project for logger in stage.loggers] == ["c"]


def test_later_files_of_a_list_win(write, base, config_of):
    write("base.yaml", base)
    write("fast.yaml", "run: {steps: 1, seed: 5}\n")
    write("slow.yaml", "run: {steps: 99}\n")
    run = config_of("extends: [base.yaml, fast.yaml, slow.yaml]\n").stages[0].run
    assert (run.steps, run.seed) == (99, 5)


def test_paths_start_at_the_file_that_holds_them(write, base, folder, config_of):
    write("shared/base.yaml", base)
    config = config_of("extends: shared/base.yaml\nalgorithm: {name: imitate}\n")
    assert config.stages[0].data.config.path == str(folder / "shared" / "train.txt")
    config = config_of("extends: shared/base.yaml\ndata: {path: other.txt}\n")
    assert config.stages[0].data.config.path == str(folder / "other.txt")
    config = config_of("extends: shared/base.yaml\n", "data.path=cli.txt")
    assert config.stages[0].data.config.path == str(folder / "cli.txt")


def test_problems_in_an_extended_file_carry_its_name_and_line(write, base, problems_of):
    write("shared/base.yaml", base + "loggers:\n  - {name: remote, projct: x}\n")
    assert problems_of("extends: shared/base.yaml\nrun: {steps: -1}\n") == [
        "c.yaml:2: run.steps: must be at least 0, found -1",
        "shared/base.yaml:7: loggers.0.projct: unknown key 'projct' for logger 'remote'\n    did you mean 'project'?",
    ]


def test_a_component_with_another_name_replaces_the_section_it_extends(write, base, config_of):
    write("base.yaml", base + "loggers: []\n")
    write("rl.yaml", "extends: base.yaml\nalgorithm: {name: imitate, rows_per_step: 9}\n")
    text = "extends: rl.yaml\nalgorithm: {name: clip}\ngenerator: {name: sampler}\nrewards: [{name: digits}]\n"
    assert config_of(text).stages[0].algorithm.name == "clip"


def test_a_password_in_the_address_of_a_file_is_not_shown(problems_of, base):
    problems = problems_of("extends: [https://me:hunter22@host/a.yaml, https://t0ken22@host/b.yaml]\n" + base)
    assert len(problems) == 2
    assert "there is no such file" in problems[0]
    assert [text for text in problems if "hunter22" in text or "t0ken22" in text] == []


def test_extends_in_a_circle_is_reported(write, problems_of):
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: c.yaml\n")
    assert problems_of("extends: a.yaml\n")[-1] == (
        "b.yaml:1: extends: 'extends' goes in a circle: c.yaml → a.yaml → b.yaml → c.yaml"
    )


def test_a_missing_extended_file_is_reported_where_it_is_named(write, base, problems_of):
    write("base.yaml", base)
    assert problems_of(base + "extends: [base.yaml, bse.yaml, 3]\n") == [
        "c.yaml:6: extends.1: cannot read 'bse.yaml': there is no such file\n    did you mean 'base.yaml'?",
        "c.yaml:6: extends.2: 'extends' takes a file name or a list of them",
    ]


STAGES = """
model: {init: {architecture: qwen2, hidden_size: 8, layers: 1, heads: 2}, max_length: 512}
tokenizer: {name: letters}
backend: {name: tiny}
data: {name: lines, path: train.txt}
run: {name: chain, steps: 10, seed: 3}
algorithm: {name: imitate, rows_per_step: 7}
stages:
  - name: sft
    run: {steps: 20}
  - name: rl
    model: {path: "${stages.sft.export}"}
    tokenizer: {name: hf}
    algorithm: {name: clip}
    generator: {name: sampler}
    rewards: [{name: digits}]
"""


def test_stages_overlay_the_base(config_of, folder):
    config = config_of(STAGES)
    sft, rl = config.stages
    assert (sft.name, sft.run.steps, sft.run.seed, sft.algorithm.config.rows_per_step) == ("sft", 20, 3, 7)
    assert (rl.name, rl.run.steps, rl.algorithm.name, rl.tokenizer.name) == ("rl", 10, "clip", "hf")
    assert rl.model.path == str(folder / "runs" / "chain" / "stages" / "sft" / "export")
    assert (rl.model.init, rl.model.max_length) == (None, 512)
    assert (sft.generator, sft.rewards) == (None, ())


def test_folders_of_stages_are_below_the_run(config_of, folder, base):
    config = config_of(STAGES)
    assert config.multi_stage
    assert config.stage_directory("rl") == str(folder / "runs" / "chain" / "stages" / "rl")
    assert config.export_directory("rl") == str(folder / "runs" / "chain" / "stages" / "rl" / "export")
    single = config_of(base)
    assert not single.multi_stage
    assert [stage.name for stage in single.stages] == ["train"]
    assert single.stage_directory("train") == single.directory == str(folder / "runs" / "demo")


def test_a_null_in_a_stage_removes_the_base_section(config_of):
    extra = STAGES.replace("    run: {steps: 20}", "    run: {steps: 20}\n    loggers: null")
    sft, rl = config_of(extra + "loggers: [{name: remote}]\n").stages
    assert (len(sft.loggers), len(rl.loggers)) == (0, 1)


def test_what_is_wrong_with_stages_is_reported_per_stage(problems_of, base):
    text = base + (
        "stages:\n"
        "  - name: a\n"
        "  - name: a\n"
        "  - {nam: b, modle: {}}\n"
        "  - name: 'x y'\n"
        "  - 5\n"
        "  - {name: c, run: {name: other}}\n"
    )
    assert problems_of(text) == [
        "c.yaml:8: stages.1.name: two stages have the name 'a', the first at c.yaml:7",
        "c.yaml:9: stages.2.nam: unknown stage key 'nam'\n    did you mean 'name'?",
        "c.yaml:9: stages.2.modle: unknown stage key 'modle'\n    did you mean 'model'?",
        "c.yaml:9: stages.2: the stage has no 'name'\n    name: sft",
        "c.yaml:10: stages.3.name: a stage's name has at most 100 letters, digits, '-' and '_', found 'x y'\n"
        "    name: sft",
        "c.yaml:11: stages.4: a stage must be a mapping\n    - name: sft",
        "c.yaml:12: stages.5.run.name: 'run.name' belongs to the whole run, not to a stage\n"
        "    move it to the top-level section 'run:'",
    ]


@pytest.mark.parametrize("stages", ["[]", "{a: 1}", "5"])
def test_stages_that_are_no_list_are_reported(problems_of, base, stages):
    assert problems_of(base + f"stages: {stages}\n") == [
        "c.yaml:6: stages: must be a list of stages\n    stages: [{name: sft, algorithm: {name: …}}, …]"
    ]


def test_a_problem_in_the_base_is_reported_once_for_all_stages(problems_of):
    assert problems_of(STAGES.replace("max_length: 512", "max_lenght: 64")) == [
        "c.yaml:1: model.max_lenght: unknown key 'max_lenght' for the section 'model'\n    did you mean 'max_length'?"
    ]


def test_a_section_that_one_stage_lacks_is_reported_there(problems_of):
    assert problems_of(STAGES.replace("algorithm: {name: imitate, rows_per_step: 7}\n", "")) == [
        "c.yaml:7: stages.0.algorithm: the section 'algorithm' is missing in stage 'sft'\n    algorithm: {name: …}"
    ]


def test_a_file_that_many_extend_is_read_once(folder, registry):
    count = 30
    for number in range(count):
        (folder / f"f{number}.yaml").write_text(f"extends: [f{number + 1}.yaml, f{number + 1}.yaml]\n")
    (folder / f"f{count}.yaml").write_text("run: {steps: 1}\n")
    began = time.process_time()
    problems = [str(one) for one in check(f"f{count - 18}.yaml", [], registry).problems]
    assert not [one for one in problems if "extends" in one]
    assert time.process_time() - began < 1
    deep = [str(one) for one in check("f0.yaml", [], registry).problems]
    assert "f19.yaml:1: extends.0: 'extends' goes more than 20 files deep" in deep


def test_a_fan_of_very_many_files_is_refused(folder, registry):
    names = [f"f{number}.yaml" for number in range(120)]
    for name in names:
        (folder / name).write_text("run: {steps: 1}\n")
    (folder / "c.yaml").write_text(f"extends: [{', '.join(names)}]\n")
    problems = [str(one) for one in check("c.yaml", [], registry).problems]
    assert problems[0] == "c.yaml:1: extends.99: 'extends' reads more than 100 files"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [" + "1," * 200_000 + "]", "the document holds more than 20000 values"),
        ("a: [" + "1," * 600_000 + "]", "a config has at most 1 MiB"),
        ("\n".join(f"k{i}: 1" for i in range(15_000)), "and 14805 more problems"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ('extends: "a\\0b"', "embedded null byte"),
        ("run: {name: " + "n" * 300 + "}", "run.name: must have at most 200 characters"),
        ("run: {directory: " + "n" * 300 + "}", "a name in the path has 300 bytes; file systems take 255"),
        ("run: {directory: " + "n/" * 3000 + "}", "systems take 4095"),
        ('run: {directory: "a\\0b"}', "the path holds a NUL character"),
        ("extends: " + "n" * 300, "File name too long"),
    ],
    ids=range(10),
)
def test_what_is_too_large_is_refused_in_seconds(text, problem, folder, registry):
    (folder / "c.yaml").write_text(text)
    began = time.process_time()
    problems = [str(one) for one in check("c.yaml", [], registry).problems]
    assert time.process_time() - began < 5
    assert [one for one in problems if problem in one], problems[:3]
