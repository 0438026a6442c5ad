"""A vocabulary that ranks share gives what one rank gets from all of it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))

import vocab_ranks


@pytest.mark.parametrize("chunk", [None, 4])
def test_values_and_gradients_equal_those_of_the_whole_vocabulary(chunk: int | None) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(vocab_ranks.compare, (2, port, chunk), nprocs=2)
