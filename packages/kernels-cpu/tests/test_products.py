"""Products by oneDNN are those of PyTorch's BLAS."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from rl_kernels_cpu import products

ROWS, OUT, INTO = 600, 640, 512
TOLERANCE = 2e-6
"""Of float32 sums over 512 to 640 numbers, as a share of the largest."""


@pytest.fixture
def operands() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, INTO), (OUT, INTO), (OUT,), (ROWS, OUT), (ROWS, INTO)
    return tuple(torch.randn(*shape, generator=generator) for shape in shapes)


@pytest.fixture(autouse=True)
def not_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever CPU this is, it is none of MKL's maker, and good at bfloat16."""
    monkeypatch.setattr(products, "mkl_at_home", lambda: False)
    monkeypatch.setattr(products, "bfloat16_is_slower", lambda: False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every product that oneDNN computes."""
    rows: list[int] = []
    compute = products._onednn

    def watched(x: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        rows.append(len(x))
        return compute(x, *rest)

    monkeypatch.setattr(products, "_onednn", watched)
    return rows


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.dtype == torch.float32
    return float((found - expected).abs().max() / expected.abs().max())


def test_large_products_are_exact_up_to_rounding(operands: tuple[torch.Tensor, ...], asked: list[int]) -> None:
    x, weight, bias, gradient, plus = operands
    exact = [o.double() for o in operands]
    assert gap(products.product(x, weight), exact[0] @ exact[1].T) < TOLERANCE
    assert gap(products.product(x, weight, bias), exact[0] @ exact[1].T + exact[2]) < TOLERANCE
    assert gap(products.by_input(gradient, weight), exact[3] @ exact[1]) < TOLERANCE
    assert gap(products.by_input(gradient, weight, plus=plus.clone()), exact[3] @ exact[1] + exact[4]) < TOLERANCE
    residual, out = gradient, torch.empty(ROWS, OUT)
    assert products.added(residual, x, weight, bias, out=out) is out
    assert gap(out, exact[3] + exact[0] @ exact[1].T + exact[2]) < TOLERANCE
    assert asked == [ROWS] * 5


def test_small_ones_and_other_precisions_are_the_blas_s(operands: tuple[torch.Tensor, ...], asked: list[int]) -> None:
    x, weight, _, gradient, _ = operands
    products.product(x[:511], weight)
    products.product(x, weight[:511])
    products.product(x.double(), weight.double())
    products.by_input(gradient.bfloat16(), weight.bfloat16())
    products.by_weight(gradient, x)
    assert asked == []


def test_on_cpus_of_its_maker_products_are_mkl_s(
    operands: tuple[torch.Tensor, ...], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "mkl_at_home", lambda: True)
    x, weight, bias, _, _ = operands
    assert torch.equal(products.product(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    assert asked == []


def test_where_bfloat16_is_slower_products_are_computed_in_float32(
    operands: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And rounded once: nearer to the exact ones than half a unit of the last place, and a rounding of float32."""
    monkeypatch.setattr(products, "bfloat16_is_slower", lambda: True)
    given = [o.bfloat16() for o in operands]
    x, weight, bias, gradient, plus = (o.double() for o in given)
    out = torch.empty(ROWS, OUT, dtype=torch.bfloat16)
    assert products.added(given[3], given[0], given[1], given[2], out=out) is out
    for found, exact in (
        (products.product(given[0], given[1]), x @ weight.T),
        (products.product(given[0], given[1], given[2]), x @ weight.T + bias),
        (out, gradient + x @ weight.T + bias),
        (products.added(given[3], given[0], given[1]), gradient + x @ weight.T),
        (products.by_input(given[3], given[1]), gradient @ weight),
        (products.by_input(given[3], given[1], plus=given[4].clone()), gradient @ weight + plus),
        (products.by_weight(given[3], given[0]), gradient.T @ x),
    ):
        assert found.dtype == torch.bfloat16
        error = (found.double() - exact).abs()
        assert (error <= 2**-8 * exact.abs() * (1 + 1e-3) + TOLERANCE * exact.abs().max()).all()


CODE = """
import sys
import torch
from rl_kernels_cpu import products
products.mkl_at_home = lambda: False
from rl_kernels_cpu.products import by_input
from rl_kernels_cpu.kernel import KERNEL
torch.set_num_threads(1)
if sys.argv[1] == "few":
    KERNEL.prepare_process("cpu")
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024
weight, gradient = torch.randn(1024, 512), torch.randn(1024, 1024)
for rows in range(512, 612):
    by_input(gradient[:rows], weight)
before = memory()
for rows in range(612, 762):
    by_input(gradient[:rows], weight)
print(memory() - before)
"""


def growth(how: str) -> int:
    """MB that 150 numbers of rows take."""
    clean = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")}
    done = subprocess.run([sys.executable, "-c", CODE, how], env=clean, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_products_of_earlier_steps_take_no_memory() -> None:
    kept = growth("all")
    assert kept > 40, "the code of 150 products, with more threads copies of the weight, too"
    assert growth("few") < kept / 2
