"""The comparison's arithmetic: from marks to rates, from rates to ratios, and what makes a ratio void."""

import json

import pytest
from support import ROOT


@pytest.fixture(autouse=True)
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def run(seconds=2.0, **changes):
    """A run of two warm-up steps and two measured ones of 100 tokens each."""
    from compare.measuring import Measurement

    same = {
        "steps": 2,
        "seconds": seconds,
        "cpu_seconds": seconds * 1.5,
        "foreign": 0.0,
        "step_seconds": [seconds / 2] * 2,
        "tokens": [500, 500, 100, 100],
        "trained_tokens": [50, 50, 60, 60],
        "sequences": [8] * 4,
        "losses": [4.0, 3.0, 2.0, 1.0],
        "grad_norms": [1.0] * 4,
        "setup_s": 9.0,
        "peak_rss": 1000,
        "peak_pss": 900,
    }
    return Measurement(**{**same, **changes})


def test_a_run_is_measured_from_the_end_of_the_warm_up():
    from compare.measuring import measure
    from compare.watching import Mark, Watched

    walls, cpus, machine = (7.0, 10.0, 12.0, 13.0), (1.0, 2.0, 4.0, 5.0), (100.0, 110.0, 113.0, 114.5)
    marks = tuple(Mark(*mark) for mark in zip(walls, cpus, machine, strict=True))
    line = {"trained_tokens": 3, "sequences": 2, "loss": 1, "grad_norm": 2}
    reported = [line | {"tokens": n, "times": {"time/train_s": n / 100}} for n in (5, 6, 30, 60)]
    found = measure(Watched(marks, setup_s=7.0, peak_rss=11, peak_pss=10), reported)
    assert (found.steps, found.seconds, found.cpu_seconds) == (2, 3.0, 3.0)
    assert found.step_seconds == [2.0, 1.0]
    assert found.foreign == pytest.approx((4.5 - 3.0) / 3.0), "what the machine did, less what the system did"
    assert found.tokens_per_second == (30 + 60) / 3.0
    assert found.sequences_per_second == 4 / 3.0
    assert found.times == {"time/train_s": pytest.approx(0.45)}, "the median of what is measured"


def test_the_same_work_is_not_complained_about():
    from compare.measuring import unequal_work

    near = run(seconds=1.0, losses=[4.00009, 0, 0, 0], grad_norms=[1.00009, 0, 0, 0])
    assert unequal_work(run(), near, kind="sft", same_maths=True) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 3}, "steps differ: 2 and 3"),
        ({"sequences": [8, 8, 8, 7]}, "sequences differ: [8, 8, 8, 8] and [8, 8, 8, 7]"),
        ({"tokens": [500, 500, 100, 101]}, "tokens differ: [500, 500, 100, 100] and [500, 500, 100, 101]"),
        ({"trained_tokens": [50, 50, 60, 59]}, "trained tokens differ: [50, 50, 60, 60] and [50, 50, 60, 59]"),
        ({"losses": [4.0002, 3, 2, 1]}, "first loss differs: 4.000000 and 4.000200"),
        ({"losses": [float("nan"), 3, 2, 1]}, "first loss differs: 4.000000 and nan"),
        ({"grad_norms": [1.0002, 1, 1, 1]}, "first gradient norm differs: 1.000000 and 1.000200"),
    ],
)
def test_other_work_is_named(changes, complaint):
    from compare.measuring import unequal_work

    assert unequal_work(run(), run(**changes), kind="sft", same_maths=True) == [complaint]


def test_where_the_maths_differ_only_the_amount_of_work_counts():
    from compare.measuring import unequal_work

    other = run(losses=[9.0] * 4, trained_tokens=[1] * 4)
    assert unequal_work(run(), other, kind="rm", same_maths=False) == [], "a reward model has no trained tokens"
    assert len(unequal_work(run(), other, kind="grpo", same_maths=False)) == 1


@pytest.fixture
def results(tmp_path):
    from compare.results import Results

    return Results.open(tmp_path / "compare.json")


def case(workload="sft-40-63", size="m", precision="fp32"):
    from compare.results import Case

    return Case(workload, size, precision, 2)


def test_ratios_are_those_of_neighbouring_runs(results):
    from compare.ratios import Spread, comparisons

    for repeat, (ours, theirs) in enumerate([(1.0, 2.0), (2.0, 6.0), (1.0, 1.5)]):
        results.add(case(), "rl", repeat, run(ours, peak_rss=500), about={})
        results.add(case(), "trl", repeat, run(theirs, peak_rss=1000), about={})
    results.add(case(), "rl", 3, run(0.001), about={})  # has no partner yet
    (found,) = comparisons(results, "trl")
    assert found.speed == Spread(median=2.0, low=1.5, high=3.0)
    assert found.cpu == Spread(median=2.0, low=1.5, high=3.0)
    assert found.memory == Spread(median=2.0, low=2.0, high=2.0)
    assert (found.ours, found.theirs) == (200.0, 100.0), "tokens a second, of the median run"
    assert (found.repeats, found.target, found.void) == (3, 1.25, ())


def test_with_16_bits_the_peer_may_use_what_it_is_faster_with(results):
    from compare.ratios import comparisons

    results.add(case(precision="bf16"), "rl", 0, run(1.0), about={})
    results.add(case(precision="bf16"), "trl", 0, run(4.0, losses=[9.0] * 4), about={})
    (found,) = comparisons(results, "trl")
    assert (found.speed.median, found.peer_precision) == (4.0, "bf16")
    results.add(case(precision="fp32"), "trl", 0, run(3.0), about={})
    (found,) = comparisons(results, "trl")
    assert (found.speed.median, found.peer_precision, found.target) == (3.0, "fp32", 2.0)
    assert found.void == (), "in 16 bits the losses need not agree"


def test_rollouts_are_compared_by_samples_and_need_a_step_on_the_same_completions(results):
    from compare.ratios import compare

    rollouts = case("grpo", "xs")
    results.add(rollouts, "rl", 0, run(1.0), about={})
    results.add(rollouts, "trl", 0, run(2.0, losses=[9.0] * 4), about={})
    found = compare(results, rollouts, "trl")
    assert (found.ours, found.theirs) == (16.0, 8.0)
    assert found.void == ("the loss on the same completions was not compared",)
    results.equality[f"{rollouts.name}/trl"] = ["first loss differs: 1 and 2"]
    assert compare(results, rollouts, "trl").void == ("first loss differs: 1 and 2",)
    results.equality[f"{rollouts.name}/trl"] = []
    assert compare(results, rollouts, "trl").void == ()


def test_the_file_keeps_runs_so_that_a_comparison_can_go_on(results):
    from compare.results import Results
    from compare.schedule import Schedule

    schedule = Schedule(workloads=["dpo"], sizes=["xs"], precisions=["fp32"], threads=2, repeats=2)
    assert [(system, repeat) for _, system, repeat in schedule.runs()] == [("rl", 0), ("trl", 0), ("rl", 1), ("trl", 1)]
    wanted = next(schedule.runs())
    results.add(*wanted, run(), about={"date": "today"})
    again = Results.open(results.path)
    assert again.get(*wanted) == run()
    assert [again.get(*one) is None for one in schedule.runs()] == [False, True, True, True]
    assert json.loads(results.path.read_text())["runs"]["dpo/xs/fp32/2/rl/0"]["about"] == {"date": "today"}


def test_in_16_bits_alone_the_peer_runs_in_both_precisions():
    from compare.schedule import Schedule

    schedule = Schedule(workloads=["sft-40-63"], sizes=["m"], precisions=["bf16"], threads=2, repeats=1)
    assert [(c.precision, system) for c, system, _ in schedule.runs()] == [
        ("bf16", "rl"),
        ("bf16", "trl"),
        ("fp32", "trl"),
    ]


def test_the_table_shows_ratio_spread_and_target_and_what_is_void(results):
    from compare.ratios import comparisons
    from compare.table import markdown

    for repeat, seconds in enumerate((2.0, 2.6, 3.0)):
        results.add(case(), "rl", repeat, run(2.0), about={})
        results.add(case(), "trl", repeat, run(seconds, foreign=0.7 * (repeat == 1)), about={})
    results.add(case("dpo", "xs"), "rl", 0, run(), about={})
    results.add(case("dpo", "xs"), "trl", 0, run(steps=1), about={})
    lines = markdown(comparisons(results, "trl"), peer="TRL").splitlines()
    assert lines[0].startswith("| workload | model | precision | threads | this project | TRL | speed | target |")
    spread = "1.30× (1.00-1.50)"
    cells = ["sft-40-63", "m", "fp32", "2", "100 tokens/s", "76.9", f"**{spread}**", "1.25 ✓", spread, "1.00×", "3"]
    assert lines[2].strip("| ").split(" | ") == cells
    assert lines[3].startswith("| dpo | xs | fp32 | 2 | 100 tokens/s | 50 | void | 1.6 |")
    assert lines[5] == "**Void**: dpo xs fp32: steps differ: 2 and 1."
    assert lines[7] == (
        "The machine was not quiet in 1 of 2 comparisons: other processes took up to 0.7 CPU seconds by second."
    )


def test_the_report_stands_between_its_marks():
    from compare.publishing import BEGIN, END, between

    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between(text, "new\n") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="the page must have the lines"):
        between("no marks", "new")


def test_the_documentation_has_space_for_the_report():
    from compare.publishing import between

    assert "new" in between((ROOT / "docs" / "performance.md").read_text(), "new\n")


def test_what_the_loop_costs_is_what_is_in_no_part():
    from compare.overhead import overhead
    from compare.watching import Mark, Watched

    marks = tuple(Mark(wall, 0.0, 0.0) for wall in (5.0, 6.0, 8.0, 10.0))
    found = overhead(Watched(marks, 5.0, 1, 1), {"generation": 1.0, "forward": 0.8, "backward": 2.0})
    assert found["parts_s"] == {"backward": 1.0, "forward": 0.4, "generation": 0.5}
    assert (found["step_s"], found["rest_s"], found["share"]) == (2.0, pytest.approx(0.1), pytest.approx(0.05))


def test_only_calls_of_the_measured_steps_count(tmp_path):
    from compare.stopwatch import seconds_by_part, times_file

    times_file(tmp_path).write_text("forward 1.0 2.0\nforward 3.0 3.5\nbackward 3.5 4.5\nforward 9.0 9.9\n")
    assert seconds_by_part(tmp_path, begin=3.0, end=9.0) == {"forward": 0.5, "backward": 1.0}


def test_operations_of_a_step_are_those_of_the_formula():
    from compare.utilisation import sft_flops

    layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384
    attention = 12 * 2 * 128 * (10 * 10 + 20 * 20)
    assert sft_flops("xs", [10, 20], 7) == 6 * 2 * layer * 30 + 6 * 128 * 128 * 7 + attention


def test_the_guard_names_what_got_slower_and_what_is_missing(results):
    from compare.guard import FLOORS, problems
    from compare.ratios import comparisons

    results.add(case("sft-10-200", "xs"), "rl", 0, run(2.0), about={})
    results.add(case("sft-10-200", "xs"), "plain", 0, run(2.0), about={})
    assert problems(comparisons(results, "plain")) == [
        f"sft-10-200: 1.00× is below {FLOORS['sft-10-200']:g}×, so something got slower",
        "grpo-varied: nothing was compared",
    ]
