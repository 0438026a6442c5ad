"""A vocabulary that ranks share gives what one rank gets from all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.multiprocessing as mp
from rl_core.cluster.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

import vocab_ranks


def test_values_and_gradients_equal_those_of_the_whole_vocabulary() -> None:
    mp.spawn(vocab_ranks.compare, (2, free_port()), nprocs=2)
