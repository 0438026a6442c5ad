"""Micro-batches, packing and ranks change nothing: every loss of every algorithm, straight through the FSDP2 backend.

Each algorithm says itself what it trains on (see ``loss_cases``); the backend then takes exactly those
optimizer steps on one rank and on two, in several layouts. The loss, the norm of the gradient and all
metrics are compared.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from loss_cases import VARIANTS, case_names, record, tokenizer
from loss_models import Models
from loss_steps import take_steps
from ranks import Ranks
from rl_core.contracts.backend import LossSpec
from rl_core.model import reduce_metrics
from rl_ray.ports import free_port

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
WHOLE = {"packing": "padded"}
"""One rank, one micro-batch, one sequence per row: what the others are compared with."""

LAYOUTS = {
    "one rank, a micro-batch for each sequence or pair": (1, {"packing": "padded", "max_tokens_per_microbatch": 1}),
    "one rank, packed": (1, {"packing": "packed"}),
    "two ranks": (2, {"packing": "padded"}),
    "two ranks, packed micro-batches": (2, {"packing": "packed", "max_tokens_per_microbatch": 40}),
}
UNSPLIT = "one rank, packed"
CASES = [name for label in VARIANTS for name in case_names(label)]
WRONG = {"wrong loss": "loss_cases:divided_by_its_own_tokens", "wrong metric": "loss_cases:metric_of_its_own_tokens"}


@pytest.fixture(scope="module")
def pair():
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def whole_and_layouts(pair, tmp_path_factory):
    """Metrics by case: of the whole batch at once on one rank, and by layout."""
    models = Models(tmp_path_factory.mktemp("models"), tokenizer().special_tokens)
    cases = {name: case for label in VARIANTS for name, case in record(label, models).items()}
    sft = cases[case_names("sft")[0]]
    cases |= {name: replace(sft, loss=LossSpec(function)) for name, function in WRONG.items()}
    work = {"cases": cases, "specs": models.specs()}
    for world, config in LAYOUTS.values():
        if world == 2:
            pair.start(take_steps, **work, config=config)

    def measure(world, config):
        ranks = pair.results() if world == 2 else [take_steps(0, 1, free_port(), **work, config=config)]
        assert all(result.finite for results in ranks for result in results.values())
        return {name: reduce_metrics([results[name] for results in ranks]) for name in cases}

    whole = measure(1, WHOLE)
    return whole, {layout: measure(*ranks_and_config) for layout, ranks_and_config in LAYOUTS.items()}


def differences(expected, found):
    """Lines on the metrics that are not the same to ``TOLERANCE``, relative; there is no absolute one."""
    assert set(found) == set(expected)
    return [
        f"{name}: {found[name]!r} instead of {value!r}"
        for name, value in expected.items()
        if not abs(found[name] - value) <= TOLERANCE * abs(value)
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_loss_its_metrics_and_its_gradient_do_not_depend_on_the_layout(case, whole_and_layouts):
    whole, layouts = whole_and_layouts
    # A loss is a sum of terms of about 1; one close to 0 would cancel, and be mostly rounding.
    assert abs(whole[case]["loss"]) > 0.01
    assert whole[case]["grad_norm"] > 0.01
    found = {layout: differences(whole[case], metrics[case]) for layout, metrics in layouts.items()}
    assert {layout: lines for layout, lines in found.items() if lines} == {}


@pytest.mark.parametrize("label", [label for label, variant in VARIANTS.items() if variant.acts])
def test_an_option_acts_on_a_part_of_the_batch(label, whole_and_layouts):
    whole, _ = whole_and_layouts
    last = {name: value for case in case_names(label) for name, value in whole[case].items()}
    for name in VARIANTS[label].acts:
        assert 0.01 < last[name] < 0.99, name


def test_no_two_variants_are_the_same(whole_and_layouts):
    whole, _ = whole_and_layouts
    seen = {
        label: [whole[case][name] for case in case_names(label) for name in ("loss", "grad_norm")] for label in VARIANTS
    }
    same = [(a, b) for a, b in combinations(VARIANTS, 2) if seen[a] == pytest.approx(seen[b], rel=1e-4)]
    assert same == []


@pytest.mark.parametrize("wrong", WRONG)
def test_a_sum_that_is_divided_by_the_tokens_of_its_own_micro_batch_is_found(wrong, whole_and_layouts):
    whole, layouts = whole_and_layouts
    expected = {"wrong loss": ["loss", "grad_norm"], "wrong metric": ["nll"]}[wrong]
    for layout, metrics in layouts.items():
        found = [line.partition(":")[0] for line in differences(whole[wrong], metrics[wrong])]
        assert sorted(found) == ([] if layout == UNSPLIT else sorted(expected)), layout
