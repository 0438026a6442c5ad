"""What the peers' runners report as each step ends, for the process that watches them."""

from __future__ import annotations

import json
from typing import IO, Any


class Progress:
    """Appends ``{"step", "loss", "grad_norm", "tokens", "trained_tokens", "sequences", …}`` line by line.

    ``tokens`` counts what is no padding, prompts included; ``trained_tokens`` those that count in the loss.
    """

    def __init__(self, path: str) -> None:
        self._file: IO[str] = open(path, "a", buffering=1)  # noqa: SIM115 - as long as the process
        self._step = 0

    def step(self, **numbers: Any) -> None:
        """Report the step that has just ended."""
        self._step += 1
        self._file.write(json.dumps({"step": self._step, **numbers}) + "\n")
