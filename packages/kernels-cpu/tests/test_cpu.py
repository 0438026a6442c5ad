"""What is taken from the system's description of its CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rl_kernels_cpu import cpu

INTEL = "vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16\n"
AMX = "vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16 amx_bf16 amx_tile\n"
AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: avx512f avx512_bf16\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the description is read from; the answers are those of this test alone."""
    monkeypatch.setattr(cpu, "_CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for question in (cpu.mkl_at_home, cpu.bfloat16_is_slower):
        monkeypatch.setattr(cpu, question.__name__, question.__wrapped__)
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(("text", "home", "slower"), [(INTEL, True, True), (AMX, True, False), (AMD, False, False)])
def test_a_cpu_is_known_by_its_maker_and_flags(machine: Path, text: str, home: bool, slower: bool) -> None:
    machine.write_text(text)
    assert (cpu.mkl_at_home(), cpu.bfloat16_is_slower()) == (home, slower)


def test_without_a_description_nothing_is_assumed(machine: Path) -> None:
    assert (cpu.mkl_at_home(), cpu.bfloat16_is_slower()) == (False, False)


def test_nor_on_other_systems(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write_text(INTEL)
    monkeypatch.setattr(cpu.sys, "platform", "darwin")
    assert (cpu.mkl_at_home(), cpu.bfloat16_is_slower()) == (False, False)


def test_a_pytorch_without_mkl_is_at_home_nowhere(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write_text(INTEL)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not cpu.mkl_at_home()
