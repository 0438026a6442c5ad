"""Kernels are found by their entry points, tried on the model, and left out with a reason where they are wrong."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rl_core.contracts.model import ModelSpec
from rl_core.errors import ConfigError
from rl_torch.architectures import body_of
from rl_torch.kernels import installed
from rl_torch.kernels.apply import apply_kernels, choose_kernels, prepare_process
from rl_torch.kernels.contract import Applied, Kernel, Use
from rl_torch.kernels.installed import chosen, expected, unknown
from rl_torch.models import build_model
from torch import Tensor

torch.set_num_threads(1)
TRAINING = Use("training", "cpu")
SHAPE = {"architecture": "qwen2", "hidden_size": 32, "layers": 2, "heads": 4}
SPEC = ModelSpec(init=SHAPE, vocab_size=32, max_length=64)
KERNELS: Any = None
"""What the entry points of a test lead to."""


class Twice(torch.autograd.Function):
    """The last hidden states unchanged, and twice their gradient: what only a comparison of gradients notices."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@dataclass
class Fake:
    """A kernel whose ``change`` is made to the last hidden states."""

    name: str = "fake"
    change: Any = torch.clone
    reason: str | None = None
    unexpected: str | None = None
    layout: Any = None
    prepared: list[str] = field(default_factory=list)

    def here(self) -> str:
        return "does nothing"

    def expects(self, use: Use) -> str | None:
        return self.unexpected

    def prepare_process(self, device: str) -> None:
        self.prepared.append(device)

    def fits(self, model: Any, use: Use) -> str | None:
        return self.reason

    def apply(self, model: Any, use: Use) -> Applied:
        changes = not use.layers_fixed_by
        norm = body_of(model).norm
        hook = norm.register_forward_hook(lambda _m, _x, out: self.change(out) if changes else None)
        return Applied(("states",) if changes else ("nothing",), hook.remove, layout=self.layout)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make these the kernels that are installed."""

    def installing(*kernels: Kernel, broken: str = "") -> None:
        targets = {kernel.name: f"{__name__}:KERNELS.{kernel.name}" for kernel in kernels}
        if broken:
            targets[broken] = "no_such_module:KERNEL"
        points = [importlib.metadata.EntryPoint(*one, installed.GROUP) for one in targets.items()]
        monkeypatch.setattr(sys.modules[__name__], "KERNELS", SimpleNamespace(**{k.name: k for k in kernels}))
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: {installed.GROUP: points}[group])

    return installing


def tried(caplog: pytest.LogCaptureFixture, choice: Any = "auto", use: Use = TRAINING) -> tuple[list[str], str]:
    """The kernels that passed on a small model, and the log; the model is as it was before."""
    model = build_model(SPEC, dtype=torch.float32)
    ids, body = torch.arange(9)[None], body_of(model)
    before = body(input_ids=ids).last_hidden_state
    draws = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        found = choose_kernels(choice, model, use, role="policy")
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.equal(body(input_ids=ids).last_hidden_state, before)
    assert all(p.grad is None for p in model.parameters())
    return [one.kernel.name for one in found], caplog.text


def test_one_that_computes_the_same_is_used(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    install(Fake(change=lambda x: x * 1.0))
    names, log = tried(caplog)
    assert names == ["fake"]
    assert "role policy: kernel fake is used: states\n" in log


@pytest.mark.parametrize("purpose", ["training", "scoring"])
def test_one_that_computes_something_else_is_left_out(install: Any, caplog: Any, purpose: Any) -> None:
    install(Fake(change=lambda x: x + 0.01))
    names, log = tried(caplog, use=Use(purpose, "cpu", layers_fixed_by="model.adapter"))
    assert names == ["fake"], "its layers are not used where something else is to happen inside of them"
    names, log = tried(caplog, use=Use(purpose, "cpu"))
    assert "its layers failed the test (hidden states differ by 0.01, more than" in log
    assert "kernel fake is used: nothing" in log


def test_a_wrong_gradient_is_noticed(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    install(Fake(change=Twice.apply))
    _, log = tried(caplog)
    assert "gradients differ by" in log
    caplog.clear()
    _, log = tried(caplog, use=Use("scoring", "cpu"))
    assert "kernel fake is used: states" in log, "where no gradient is needed"


def test_one_that_fails_is_left_out(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no such instruction")

    class Whole(Fake):
        def apply(self, model: Any, use: Use) -> Applied:
            return super().apply(model, TRAINING)

    install(Whole(change=fail))
    names, log = tried(caplog)
    assert names == []
    assert "role policy: kernel fake is not used: it failed on Qwen2ForCausalLM: RuntimeError: no such instruct" in log


@pytest.mark.parametrize("which", ["reason", "unexpected"])
def test_the_log_says_why_one_is_not_used(install: Any, caplog: Any, which: str) -> None:
    install(Fake(**{which: "it is for whales"}))
    for choice, level in (("auto", "INFO"), (("fake",), "WARNING")):
        caplog.clear()
        names, _ = tried(caplog, choice)
        assert names == []
        (record,) = [r for r in caplog.records if "kernel" in r.message]
        assert (record.levelname, record.message) == (level, "role policy: kernel fake is not used: it is for whales")


def test_of_two_with_a_layout_the_first_is_used(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Layout:
        def build(self, batch: Any, *, device: Any, width_multiple: int) -> Any:
            from rl_torch.microbatch import MicroBatch

            return MicroBatch.build(batch, packing="packed", device=device)

    first, second = Fake("first", layout=Layout()), Fake("second", layout=Layout())
    install(first, second, Fake("third"))
    names, log = tried(caplog)
    assert names == ["first", "third"]
    assert "kernel second is not used: another one lays micro-batches out already" in log
    model = build_model(SPEC, dtype=torch.float32)
    assert apply_kernels(choose_kernels("auto", model, TRAINING, role="policy"), model).layout is first.layout


def test_configs_choose_kernels_by_name(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Fake("first"), Fake("second")
    install(first, second, broken="third")
    assert [one.name for one in chosen("auto")] == ["first", "second"]
    assert "kernel third" in caplog.text
    assert "no_such_module:KERNEL cannot be imported: No module named 'no_such_module'" in caplog.text
    assert chosen("none") == []
    assert chosen(("second",)) == [second]
    with pytest.raises(ConfigError) as caught:
        chosen(("fourth",))
    assert str(caught.value) == (
        "kernels: no kernel 'fourth' is installed (installed: first, second, third)\n    pip install rl-kernels-fourth"
    )
    assert len(list(unknown(("third",)))) == 1
    prepare_process(("second",), "cpu")
    assert (first.prepared, second.prepared) == ([], ["cpu"])


def test_what_is_expected_is_said_in_a_line(install: Any) -> None:
    install(Fake("first"), Fake("second", unexpected="it computes on the CPU"))
    assert expected("auto", TRAINING) == "first; not second: it computes on the CPU"
    assert expected(("second",), TRAINING) == "not second: it computes on the CPU"
    assert expected("none", TRAINING) == "none, as configured"
    install()
    assert expected("auto", TRAINING) == "none is installed"


def test_what_a_command_needs_of_kernels_imports_no_torch() -> None:
    code = "import sys, rl_torch.kernels.config; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
