"""What feeds a stage: its rows as examples, or the rollout source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rl_core.contracts.feed import BatchSource, Feed
from rl_core.data.cursor import DataCursor
from rl_core.data.encodings import Encodings
from rl_core.data.feed import ExamplesFeed
from rl_core.data.prefetch import Prefetch
from rl_core.errors import ConfigError

if TYPE_CHECKING:
    from rl_core.config.stage import StageConfig
    from rl_core.training.driver import DriverParts

PREFETCHED = 1
"""Batches of examples that are made while one is trained on: making one takes far less than a step."""


def source_of(stage: StageConfig, driver: DriverParts) -> BatchSource:
    """Where the stage's batches come from.

    Raises:
        ConfigError: the algorithm trains on rollouts, and the stage has no generator or nothing that rewards them.
    """
    if driver.algorithm.plan().input == "examples":
        return Examples(stage, driver)
    if driver.rollouts is None or stage.generator is None or not (stage.rewards or stage.environment):
        raise ConfigError(
            f"algorithm {stage.algorithm.name!r} trains on rollouts, which need a generator and rewards\n"
            "    add both sections (and, in the plugin, needs=('generator', 'rewards') to the Component)"
        )
    return driver.rollouts


class Examples:
    """The data rows as the algorithm encodes them."""

    def __init__(self, stage: StageConfig, driver: DriverParts) -> None:
        self._rows, self._run, self._plan = driver.rows, stage.run, driver.algorithm.plan()
        self._encodings = Encodings(
            driver.rows, algorithm=driver.algorithm, tokenizer=driver.tokenizer, max_length=stage.model.max_length
        )

    @contextmanager
    def encoding(self, *, position: int, steps: int) -> Iterator[None]:
        """Encode the rows of the next steps while the block lasts."""
        count = steps * self._plan.rows_per_step
        with self._encodings.prefetching(self._cursor(position), count):
            yield
        self._encodings.check(self._cursor(position), count)

    def feed(self, position: int) -> Feed:
        """Batches that are made while the one before is trained on."""
        feed = ExamplesFeed(self._encodings, plan=self._plan, cursor=self._cursor(position))
        return Prefetch(feed, depth=PREFETCHED, steps=self._run.steps)

    def _cursor(self, position: int) -> DataCursor:
        return DataCursor(size=len(self._rows), seed=self._run.seed, position=position)
