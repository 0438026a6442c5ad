"""``backend: {name: auto}``: who is asked, who is taken, and what is written down."""

from __future__ import annotations

from textwrap import dedent

import pytest
from rating_kit import TEXT, Rates, rated, registry_of
from rl_core.contracts.model import AdapterSpec, Role
from rl_core.contracts.rating import BackendRating
from rl_core.discovery.status import PluginStatus
from rl_core.preflight.check import check
from rl_plan.schema import json_schema


@pytest.fixture
def checked(folder):
    """``checked({package: hook plugin or None}, *overrides)`` with those backend packages installed."""

    def run(packages, *overrides, text=TEXT):
        (folder / "c.yaml").write_text(dedent(text).lstrip("\n"), encoding="utf-8")
        return check("c.yaml", overrides, registry_of(packages))

    return run


def printed(result) -> list[str]:
    return [str(problem) for problem in result.problems]


def test_the_best_rating_wins_and_is_written_into_the_resolved_config(checked):
    result = checked(
        {"rl-small": Rates(rated("small", 30, "slow")), "rl-roomy": Rates(rated("roomy", 70, "made for it"))}
    )
    assert printed(result) == []
    stage = result.config.stages[0]
    assert (stage.backend.name, stage.backend.package, stage.backend.config.name) == ("roomy", "rl-roomy", "roomy")
    assert result.config.document["backend"] == {"name": "roomy"}
    assert "auto" not in result.config.to_yaml()
    rows = [(one.label, one.rating.score) for one in result.plans[0].backends["train"].ratings]
    assert rows == [("roomy (rl-roomy)", 70), ("small (rl-small)", 30)]


def test_the_written_config_loads_without_asking_again(checked, folder):
    packages = {"rl-roomy": Rates(rated("roomy", 70, config={"parallel": {"tp": 2}})), "rl-small": None}
    config = checked(packages).config
    (folder / "config.yaml").write_text(config.to_yaml())
    packages["rl-roomy"].jobs.clear()
    again = check("config.yaml", [], registry_of({"rl-roomy": None, "rl-small": Rates(rated("small", 90))}))
    assert (again.config, again.plans[0].backends["train"].ratings) == (config, ())
    assert packages["rl-roomy"].jobs == []


def test_equal_scores_go_by_name(checked):
    result = checked({"rl-small": Rates(rated("small", 50)), "rl-roomy": Rates(rated("roomy", 50))})
    assert result.config.stages[0].backend.name == "roomy"


def test_proposed_fields_fill_the_gaps_and_given_ones_win(checked):
    plugin = Rates(rated("roomy", 70, config={"parallel": {"tp": 2, "dp": 4}, "max_tokens_per_microbatch": 10}))
    result = checked({"rl-roomy": plugin}, "backend.max_tokens_per_microbatch=8192", "backend.parallel.dp=3")
    config = result.config.stages[0].backend.config
    assert (config.parallel.tp, config.parallel.dp, config.max_tokens_per_microbatch) == (2, 3, 8192)
    assert plugin.jobs[0].given == {"max_tokens_per_microbatch": 8192, "parallel": {"dp": 3}}


def test_a_field_that_the_chosen_backend_does_not_know_is_an_unknown_key(checked):
    result = checked(
        {"rl-roomy": Rates(rated("roomy", 70)), "rl-small": Rates(rated("small", 20))},
        text=TEXT.replace("name: auto", "name: auto\n      fast: true"),
    )
    assert printed(result) == [
        "c.yaml:6: backend.fast: unknown key 'fast' for backend 'roomy'\n"
        "    known keys: name, max_tokens_per_microbatch, parallel, offload"
    ]


def test_a_proposal_that_does_not_validate_is_reported_at_the_name(checked):
    result = checked({"rl-roomy": Rates(rated("roomy", 70, config={"parallel": {"tp": 0}}))})
    assert printed(result) == ["c.yaml:5: backend.parallel.tp: must be at least 1, found 0"]


def test_no_backend_that_can_run_the_job_is_an_error_with_every_reason(checked):
    result = checked(
        {
            "rl-small": Rates(rated("small", 0, "needs a GPU", "cannot train adapters")),
            "rl-silent": None,
            "rl-absent": Rates(rated("absent", 90)),
        }
    )
    assert result.config is None
    assert printed(result) == [
        "c.yaml:5: backend.name: no installed backend can run this job\n"
        "    absent (rl-absent): needs the Python module 'no_such_module', which is not installed\n"
        "    silent (rl-silent): does not rate jobs; to use it write name: silent\n"
        "    small (rl-small): needs a GPU; cannot train adapters"
    ]


def test_a_backend_that_cannot_train_the_adapter_is_never_chosen(checked):
    packages = {"rl-small": Rates(rated("small", 90)), "rl-roomy": Rates(rated("roomy", 20))}
    assert checked(packages, "model.adapter={name: lora}").config.stages[0].backend.name == "roomy"
    assert printed(checked(packages, "model.adapter={name: dora}")) == [
        "c.yaml:5: backend.name: no installed backend can run this job\n"
        "    roomy (rl-roomy): cannot train dora adapters\n"
        "    small (rl-small): cannot train dora adapters"
    ]


def test_without_a_backend_the_message_says_what_to_install(checked):
    assert printed(checked({})) == [
        "c.yaml:5: backend.name: there is no backend for 'auto' to choose: none is installed\n"
        "    pip install rl-backend-fsdp2 or pip install rl-backend-megatron"
    ]


def test_a_backend_package_that_cannot_be_loaded_is_named(folder):
    (folder / "c.yaml").write_text(dedent(TEXT).lstrip("\n"))
    registry = registry_of({})
    broken = PluginStatus("fsdp2", "rl-backend-fsdp2", "0.2", "broken", "importing it failed: ImportError: torch")
    registry.plugins = (*registry.plugins, broken)
    assert printed(check("c.yaml", [], registry)) == [
        "c.yaml:5: backend.name: there is no backend for 'auto' to choose: none is installed\n"
        "    rl-backend-fsdp2 0.2 is broken: importing it failed: ImportError: torch"
    ]


def fails(job):
    raise RuntimeError("no idea")


FAULT = "\n    this is a fault of the package; try: pip install --upgrade rl-small"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (fails, "RuntimeError: no idea"),
        (lambda job: 7, "TypeError: 'int' object is not iterable"),
        (lambda job: ["small"], "TypeError: expected rl_core.contracts.rating.BackendRating, got str"),
        (rated("big", 5), "ValueError: it rates the backend 'big', which the package does not register"),
        (
            lambda job: [BackendRating("small", 101)],
            "ValueError: rating of backend 'small': score must be 0 to 100, got 101",
        ),
    ],
)
def test_a_hook_that_fails_is_a_warning_and_its_backends_are_left_out(checked, answer, what):
    result = checked({"rl-small": Rates(answer), "rl-roomy": Rates(rated("roomy", 1))})
    assert printed(result) == [
        f"c.yaml:5: backend.name: package rl-small: its hook rate_backends failed, so its backends are left out: {what}"
        + FAULT
    ]
    assert result.problems[0].severity == "warning"
    assert result.config.stages[0].backend.name == "roomy"


def test_a_rating_of_zero_has_to_say_why():
    with pytest.raises(ValueError, match=r"^rating of backend 'small': a score of 0 needs a reason$"):
        BackendRating("small", 0)


def test_two_backends_of_one_name_are_told_apart_in_the_written_config(checked):
    result = checked({"rl-roomy": Rates(rated("roomy", 60)), "rl-other-roomy": Rates(rated("roomy", 61))})
    assert result.config.document["backend"] == {"name": "rl-other-roomy/roomy"}
    assert result.config.stages[0].backend.package == "rl-other-roomy"


def test_auto_works_as_an_override_and_keeps_the_fields_of_the_section(checked):
    plugin = Rates(rated("roomy", 70))
    text = TEXT.replace("name: auto", "name: small\n      max_tokens_per_microbatch: 99")
    result = checked({"rl-roomy": plugin, "rl-small": None}, "backend.name=auto", text=text)
    assert printed(result) == []
    assert result.config.document["backend"] == {"name": "roomy", "max_tokens_per_microbatch": 99}


def test_each_stage_chooses_for_itself(checked):
    def by_roles(job):
        return [BackendRating("roomy", 80 if job.algorithm == "pair" else 10)]

    stages = """\
    stages:
      - {name: one, algorithm: {name: imitate}}
      - {name: two}
      - {name: three, backend: {name: small, fast: true}}
    """
    result = checked({"rl-roomy": Rates(by_roles), "rl-small": Rates(rated("small", 50))}, text=TEXT + stages)
    assert printed(result) == []
    assert [stage.backend.name for stage in result.config.stages] == ["small", "roomy", "small"]
    assert {name: bool(report.ratings) for name, report in result.plans[0].backends.items()} == {
        "one": True,
        "two": True,
    }


def test_the_job_says_what_is_known_about_the_stage(checked):
    plugin = Rates(rated("roomy", 70))
    checked({"rl-roomy": plugin}, "run.gpus=4", "run.nodes=2", "model.adapter={name: lora, rank: 8}")
    (job,) = plugin.jobs
    assert (job.algorithm, job.gpus, job.nodes, job.total_gpus, job.max_length) == ("pair", 4, 2, 8, 32)
    assert job.input == "rollouts"
    assert job.tokens_per_step == 4 * 8 // 2 * 32
    assert job.adapter == AdapterSpec("lora", rank=8, alpha=16.0)
    policy, reference = Role("policy", trainable=True), Role("reference", trainable=False, base_of="policy")
    assert [r.role for r in job.roles] == [policy, reference]
    assert job.shape.parameters().total == job.roles[1].shape.parameters().total
    assert (job.unknown, job.notes) == ("", ())


def test_a_reference_of_its_own_has_its_own_shape(checked):
    plugin = Rates(rated("roomy", 70))
    result = checked({"rl-roomy": plugin}, "algorithm.reference=org/large", "model.adapter={name: lora}")
    (job,) = plugin.jobs
    assert job.roles[1].role == Role("reference", trainable=False, path="org/large")
    assert job.unknown == "org/large is not in the local Hugging Face cache"
    assert (
        result.plans[0].backends["train"].memory_line() == "unknown: org/large is not in the local Hugging Face cache"
    )


def test_an_algorithm_that_cannot_be_built_counts_as_one_trained_model(checked):
    plugin = Rates(rated("roomy", 70))
    checked({"rl-roomy": plugin}, "algorithm.broken=true")
    (job,) = plugin.jobs
    assert [r.role for r in job.roles] == [Role("policy", trainable=True)]
    assert job.notes == ("one trained model is assumed: the algorithm's are unknown (RuntimeError: no such thing)",)


def test_a_run_on_another_cluster_knows_no_memory(checked):
    plugin = Rates(rated("roomy", 70))
    checked({"rl-roomy": plugin}, "run.address=ray://far:10001")
    checked({"rl-roomy": plugin})
    assert [job.host_memory_bytes is None for job in plugin.jobs] == [True, False]


def test_nothing_is_asked_where_another_section_is_wrong(checked):
    plugin = Rates(rated("roomy", 70))
    result = checked({"rl-roomy": plugin}, "model.max_length=1")
    assert printed(result) == ["command line: model.max_length: must be at least 2, found 1"]
    assert plugin.jobs == []


def test_the_schema_allows_auto_with_fields_of_any_backend():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(registry_of({"rl-roomy": None, "rl-small": None}))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator({**schema["$defs"]["section.backend"], "$defs": schema["$defs"]})
    assert validator.is_valid({"name": "auto"})
    assert validator.is_valid({"name": "auto", "parallel": {"dp": 2}, "fast": True})
    assert not validator.is_valid({"name": "auto", "max_tokens_per_microbatch": 0})
    assert not validator.is_valid({"name": "roomy", "fast": True})
