"""FSDP2 has all that the engine promises, in every dimension of its mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from fsdp2_helpers import FSDP2, train
from ranks import Ranks
from rl_core.contracts.backend import Topology
from rl_torch.engine.testing.examples import random_batch
from rl_torch.engine.testing.jobs import On
from rl_torch.engine.testing.suite import EngineSuite


class TestFsdp2(EngineSuite):
    """Shared tests on one rank and on two."""

    under = FSDP2
    layouts: ClassVar[dict[str, On]] = {
        "one rank": On(),
        "small micro-batches": On(2, {"max_tokens_per_microbatch": 60}),
        "packed": On(2, {"packing": "packed", "max_tokens_per_microbatch": 90}),
        "tensor parallel": On(2, {"parallel": {"tp": 2, "sequence": True}}),
        "context parallel": On(2, {"parallel": {"cp": 2}}),
    }
    weights_tolerance = 2e-6


@pytest.fixture(scope="module")
def ranks(single: Ranks, pair: Ranks) -> Callable[..., Any]:
    """As many as a job needs."""
    return lambda job, world, **options: {1: single, 2: pair}[world](job, **options)


def test_ranks_report_their_places(pair: Ranks) -> None:
    options: dict[str, Any] = {"batch": random_batch(2), "steps": 0}
    assert [r["place"] for r in pair(train, **options)] == [Topology(0, 2), Topology(1, 2)]
    shared = pair(train, **options, config={"parallel": {"cp": 2}})
    assert [r["place"] for r in shared] == [Topology(0, 1), Topology(0, 1, is_output=False)]
