"""A vocabulary that ranks share gives what one rank gets from all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from rl_core.cluster.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

import vocab_ranks


@pytest.mark.parametrize("chunk", [None, 4])
def test_values_and_gradients_equal_those_of_the_whole_vocabulary(chunk: int | None) -> None:
    mp.spawn(vocab_ranks.compare, (2, free_port(), chunk), nprocs=2)
