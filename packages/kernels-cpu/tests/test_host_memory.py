"""What becomes of freed memory, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import resource, sys
import torch
from rl_kernels_cpu.host_memory import keep_freed_memory
from rl_torch.memory_probe import give_back_freed_memory
if sys.argv[1] == "give back":
    give_back_freed_memory()
kept = keep_freed_memory()
def step():
    return [torch.ones(2_000_000) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 5 * 8 * 8_000_000 // 4096


def faults(how: str, **environment: str) -> tuple[bool, int]:
    """Whether memory is said to be kept, and page faults of five steps."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | environment
    done = subprocess.run([sys.executable, "-c", CODE, how], env=clean, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


def test_kept_memory_is_not_asked_for_again() -> None:
    kept, count = faults("keep")
    assert kept
    assert count < PAGES / 20


def test_memory_is_given_back_where_that_was_asked_for() -> None:
    kept, count = faults("give back")
    assert not kept
    assert count > PAGES / 20


def test_what_the_user_set_stays() -> None:
    kept, _ = faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
