"""A third strategy, plain data parallelism, has all that the engine promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from ranks import Ranks, in_this_process
from rl_torch.engine.testing.jobs import On, Under
from rl_torch.engine.testing.suite import EngineSuite


class TestPlain(EngineSuite):
    """Shared tests on one rank and on two."""

    under = Under("plain", "plain_ddp:PlainBackend", "rl_torch.engine.config:EngineConfig")
    layouts: ClassVar[dict[str, On]] = {
        "one rank": On(),
        "two ranks, packed micro-batches": On(2, {"packing": "packed", "max_tokens_per_microbatch": 60}),
    }


@pytest.fixture(scope="module")
def ranks() -> Iterator[Any]:
    """One rank in this process, two in processes of their own."""
    pair = Ranks(2)
    yield lambda job, world=1, **options: (pair if world == 2 else in_this_process)(job, world, **options)
    pair.close()
