"""Warnings about data that a chat template ignores, each given once."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Notices:
    """Warnings about a template, each logged once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def once(self, message: str) -> None:
        """Log ``message`` as a warning, the first time."""
        if message not in self._said:
            self._said.add(message)
            logger.warning("%s", message)

    def unread(self, what: str) -> None:
        """The template does not read ``what``."""
        self.once(f"the chat template does not read {what}: it has no effect")

    def left_out(self, left_out: int, turns: int) -> None:
        """So many of a conversation's assistant turns are not trained on; further conversations are said at INFO."""
        first = "left out" not in self._said
        self._said.add("left out")
        logger.log(
            logging.WARNING if first else logging.INFO,
            "%d of a conversation's %d assistant turns are read, not trained on: the chat template renders them "
            "otherwise once more messages follow (it drops their reasoning, for example), so the model would not have "
            "written them like that. To train on them, give each a row of its own that ends with it (further ones at "
            "level INFO)",
            left_out,
            turns,
        )
