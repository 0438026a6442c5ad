"""Layers with a backward pass of their own: against numerical derivatives, PyTorch's operations, and transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_kernels_cpu import gate, norm
from rl_kernels_cpu.attention import LONGEST_WRITTEN_OUT, Heads, attend
from rl_kernels_cpu.distinct import Distinct
from rl_kernels_cpu.kernel import KERNEL
from rl_kernels_cpu.layers import fits, use_own_layers
from rl_kernels_cpu.ragged import use_ragged_attention
from rl_kernels_cpu.rotary import Rotation
from rl_kernels_cpu.rows import OneRow
from rl_kernels_cpu.slots import Slots
from rl_kernels_cpu.training import narrow
from rl_torch.kernels.contract import Use
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, wrap_model
from torch import Tensor
from torch.nn import functional as F

torch.set_num_threads(1)
VOCABULARY = 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_agree(found: Any, expected: Any, *, tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * (1 + other.abs().max())


def gradients(output: Tensor, inputs: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output * weights).sum(), inputs)


def test_the_norm_and_its_gradients_are_pytorchs() -> None:
    x, weight, g = random(2, 5, 8).requires_grad_(), random(8, seed=1).requires_grad_(), random(2, 5, 8, seed=2)
    expected = F.rms_norm(x, (8,), weight, 1e-3)
    found, factor = norm.forward(x.detach(), weight.detach(), 1e-3)
    assert_agree([found], [expected])
    by_x, by_weight = gradients(expected, (x, weight), g)
    assert_agree(norm.backward(g.clone(), x.detach(), factor, weight.detach()), (by_x, by_weight))
    more = norm.backward(g.clone(), x.detach(), factor, weight.detach(), plus=torch.ones_like(x))
    assert_agree(more, (by_x + 1, by_weight))


def test_the_norm_is_one_operation_that_leaves_its_gradient_alone() -> None:
    x, weight = random(3, 8).requires_grad_(), random(8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: norm.Norm.apply(a, b, 1e-3), (x, weight))
    given = torch.ones(3, 8, dtype=torch.float64)
    norm.Norm.apply(x, weight, 1e-3).backward(given)
    assert given.eq(1).all()


def test_turning_and_turning_back() -> None:
    angles = random(5, 3, seed=1)
    embeddings = tuple(torch.cat([f(angles), f(angles)], dim=-1) for f in (torch.cos, torch.sin))
    rotation, x = Rotation.of(embeddings), random(5, 2, 6)
    swapped = torch.cat([-x[..., 3:], x[..., :3]], dim=-1)
    assert_agree([rotation.forward(x)], [x * embeddings[0][:, None] + swapped * embeddings[1][:, None]])
    assert_agree([rotation.backward(rotation.forward(x))], [x])
    some = torch.tensor([3, 0])
    assert_agree([rotation.at(some).forward(x[some])], [rotation.forward(x)[some]])


def test_the_gate_and_its_gradients_are_pytorchs() -> None:
    opening, up, g = random(4, 6).requires_grad_(), random(4, 6, seed=1).requires_grad_(), random(4, 6, seed=2)
    expected = F.silu(opening) * up
    assert_agree([gate.forward(opening.detach(), up.detach())], [expected])
    assert_agree(gate.backward(g.clone(), opening.detach(), up.detach()), gradients(expected, (opening, up), g))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("length", [1, 9, 20, LONGEST_WRITTEN_OUT + 1])
def test_attention_and_its_gradients_are_pytorchs(length: int, window: int | None) -> None:
    query, key, value = (random(2, n, length, 4, seed=n).requires_grad_() for n in (4, 2, 2))
    back = torch.arange(length)[:, None] - torch.arange(length)[None]
    seen = (back >= 0) if window is None else (back >= 0) & (back < window)
    k, v = (x.repeat_interleave(2, 1) for x in (key, value))
    expected = torch.softmax((0.3 * query @ k.mT).masked_fill(~seen, -torch.inf), dim=-1) @ v
    shown = [x.detach().reshape(-1, 4) for x in (query, key, value)]
    found, backward = attend(((2, length),), *shown, Heads(4, 2, 4, 0.3, window))
    assert_agree([found.view_as(expected)], [expected])
    g = random(2, 4, length, 4, seed=9)
    found_gradients = [x.view_as(y) for x, y in zip(backward(g.view(-1, 4)), (query, key, value), strict=True)]
    assert_agree(found_gradients, gradients(expected, (query, key, value), g))


def test_attention_of_groups_is_that_of_each() -> None:
    shapes, heads = ((2, 20), (3, 6)), Heads(4, 2, 4, 0.3)
    query, key, value, g = (random(58 * n, 4, seed=seed) for seed, n in enumerate((4, 2, 2, 4)))
    found, backward = attend(shapes, query, key, value, heads)
    by_all = backward(g)
    begin = 0
    for count, width in shapes:
        end = begin + count * width
        wide, narrow = slice(4 * begin, 4 * end), slice(2 * begin, 2 * end)
        expected, back = attend(((count, width),), query[wide], key[narrow], value[narrow], heads)
        assert_agree([found[wide]], [expected])
        assert_agree([whole[where] for whole, where in zip(by_all, (wide, narrow, narrow), strict=True)], back(g[wide]))
        begin = end


def test_slots_hold_every_head_of_every_position() -> None:
    rows = MicroBatch.build(groups(), packing=OneRow()).arguments["rows"]
    slots, positions = Slots.of(rows, 3), len(rows.owners)
    assert Slots.of(rows, 3) is slots, "made once"
    states = random(positions, 3, 2)
    shown = slots.gather(states)
    begin = 0
    for count, width in rows.shapes:
        group = shown[begin * 3 : (begin + count * width) * 3].view(count, 3, width, 2)
        index = rows.indices[begin : begin + count * width].view(count, width)
        assert torch.equal(group.transpose(1, 2), states[index])
        begin += count * width
    assert torch.equal(slots.scatter(shown), states)
    # Adjoint: <gather x, y> = <x, gather_backward y> where y is zero behind the ends of sequences.
    real = slots.gather(slots.gather_backward(torch.ones_like(shown)))
    assert real.min() == 1
    assert real.max() > 1, "some beginnings are shared"
    y = random(positions, 3, 2, seed=1)
    assert_agree([(slots.scatter(shown * 2) * y).sum()], [(shown * 2 * slots.scatter_backward(y)).sum()])


def model(architecture: str, *, head: str = "lm", layers: int = 3, **extra: object) -> torch.nn.Module:
    size = {"hidden_size": 32, "layers": layers, "heads": 4, "kv_heads": 2}
    init = {"architecture": architecture, **size, "extra": extra}
    built = build_model(ModelSpec(init=init, vocab_size=VOCABULARY, max_length=512), dtype=torch.float64, head=head)
    for name, parameter in built.named_parameters():
        if parameter.ndim == 1 or name == "score.weight":  # norms, biases and a new head begin at one or zero
            parameter.data += random(*parameter.shape, seed=len(name)) / 4
    return built


def groups(*, longest: int = 30, scored: float = 1.0) -> SequenceBatch:
    """Prompts with up to four completions each, of which parts are scored."""
    rng = np.random.default_rng(0)
    rows, masks = [], []
    for _ in range(5):
        prompt = rng.integers(0, VOCABULARY, rng.integers(2, longest))
        for _ in range(rng.integers(1, 5)):
            rows.append(np.concatenate([prompt, rng.integers(0, VOCABULARY, rng.integers(1, longest))]))
            chosen = (np.arange(len(rows[-1])) >= len(prompt)) & (rng.random(len(rows[-1])) < scored)
            masks.append(chosen.astype(np.float32))
    return SequenceBatch.from_lists(rows, token_columns={"loss_mask": masks})


def results(
    built: torch.nn.Module, batch: SequenceBatch, head: str, names: tuple[str, ...], *, own: bool
) -> list[Tensor]:
    """Outputs and all gradients."""
    wrapped = wrap_model(built, head)
    use_ragged_attention(built)
    if own:
        use_own_layers(built)
        wrapped.narrow = narrow
    micro = MicroBatch.build(batch, packing=OneRow())
    found = compute_outputs(wrapped, micro, names, **micro.arguments)
    values = [getattr(found, name) for name in names]
    sum((v * random(*v.shape, seed=5)).sum() for v in values).backward()
    return [v.detach() for v in values] + [p.grad for p in built.parameters()]


ARCHITECTURES = [
    ("qwen2", {}),
    ("qwen3", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 6}),
]


@pytest.mark.parametrize(("architecture", "extra"), ARCHITECTURES)
@pytest.mark.parametrize(("longest", "scored"), [(30, 1.0), (30, 0.3), (400, 1.0)])
def test_models_compute_what_transformers_computes(
    architecture: str, extra: dict[str, object], longest: int, scored: float
) -> None:
    batch, names = groups(longest=longest, scored=scored), ("logprobs", "entropy")
    expected = results(model(architecture, **extra), batch, "lm", names, own=False)
    found = results(model(architecture, **extra), batch, "lm", names, own=True)
    assert len(found) > 20
    # transformers' norms compute in float32, also of float64 states.
    assert_agree(found, expected, tolerance=2e-6)


@pytest.mark.parametrize("names", [("values",), ("scores",), ("values", "scores")])
@pytest.mark.parametrize("scored", [1.0, 0.3])
def test_scalar_models_compute_what_transformers_computes(names: tuple[str, ...], scored: float) -> None:
    expected = results(model("qwen3", head="scalar"), groups(scored=scored), "scalar", names, own=False)
    found = results(model("qwen3", head="scalar"), groups(scored=scored), "scalar", names, own=True)
    assert_agree(found, expected, tolerance=2e-6)


def test_a_batch_without_anything_to_train_on_has_gradients_of_zero() -> None:
    found = results(model("qwen3"), groups(scored=0.0), "lm", ("logprobs",), own=True)
    assert len(found) > 20
    assert all(one.eq(0).all() for one in found)


def test_in_16_bits_it_rounds_as_much_as_transformers() -> None:
    batch, names = groups(), ("logprobs",)
    exact = results(model("qwen3"), batch, "lm", names, own=False)
    both = [results(model("qwen3").bfloat16(), batch, "lm", names, own=own) for own in (False, True)]
    compared = 0
    for expected, usual, own in zip(exact, *both, strict=True):
        errors = [(found - expected).abs().mean() for found in (usual, own)]
        if expected.ndim == 2 or expected is exact[0]:  # not of the norms, whose few numbers are right by chance
            assert 0 < errors[1] <= 1.1 * errors[0]
            compared += 1
    assert compared == 1 + 1 + 3 * 7


def test_the_last_layer_is_computed_where_it_is_wanted() -> None:
    built, seen = model("qwen2"), []
    wrapped = wrap_model(built, "lm")
    use_ragged_attention(built)
    use_own_layers(built)
    wrapped.narrow = narrow
    built.model.norm.register_forward_hook(lambda _module, given, _result: seen.append(given[0].shape))
    for scored in (0.3, 1.0):
        micro = MicroBatch.build(groups(scored=scored), packing=OneRow())
        compute_outputs(wrapped, micro, ("logprobs",), **micro.arguments)
        seen.append(torch.unique(micro.predictors).shape)
    assert seen[0] == (1, *seen[1], 32), "some positions"
    assert seen[2] == (1, *seen[3], 32)
    everywhere = SequenceBatch.from_lists([[1, 2, 3] * 20])
    micro = MicroBatch.build(everywhere, packing=OneRow())
    compute_outputs(wrapped, micro, ("logprobs",), **micro.arguments)
    assert seen[4] == (1, 60, 32), "all, where leaving one out would save nothing"


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("architecture", "extra"), ARCHITECTURES)
@pytest.mark.parametrize("scored", [1.0, 0.3])
def test_the_first_layer_projects_every_token_once(
    architecture: str, extra: dict[str, object], layers: int, scored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, names, rows = groups(scored=scored), ("logprobs",), []
    shape = {**extra, "layers": layers}
    forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x, *given: rows.append(len(x)) or forward(x, *given))
    found = results(model(architecture, **shape), batch, "lm", names, own=True)
    assert rows[0] == len(np.unique(batch.tokens)) <= VOCABULARY
    monkeypatch.setattr("rl_kernels_cpu.training.Distinct.of", lambda ids: None)
    assert_agree(found, results(model(architecture, **shape), batch, "lm", names, own=True), tolerance=1e-12)


def test_tokens_are_told_apart_only_where_many_are_the_same() -> None:
    found = Distinct.of(torch.tensor([[7, 3, 7, 7, 3, 9]]))
    assert found.first.tolist() == [1, 0, 5]
    assert found.kinds.tolist() == [1, 0, 1, 1, 0, 2]
    assert found.at(torch.tensor([5, 0])).tolist() == [2, 1]
    assert found.total(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 3])).tolist() == [[0.0], [3.0], [0.0]]
    assert Distinct.of(torch.tensor([[7, 3, 7, 9]])) is None


def test_it_is_known_which_models_fit() -> None:
    assert all(fits(model(architecture, **extra)) for architecture, extra in ARCHITECTURES)
    assert fits(model("qwen2", head="scalar"))
    assert not fits(model("qwen2", hidden_act="gelu"))
    assert not fits(model("gemma2", query_pre_attn_scalar=8))
    adapted = model("qwen2")
    adapted.model.layers[0].mlp.up_proj = torch.nn.Sequential(adapted.model.layers[0].mlp.up_proj)
    assert not fits(adapted)


def test_what_is_applied_can_be_removed() -> None:
    for fixed in ("", "model.adapter"):
        built = model("qwen2")
        usual = type(built.model.layers[0]).forward
        applied = KERNEL.apply(built, Use("training", "cpu", layers_fixed_by=fixed))
        assert applied.parts == (("ragged rows",) if fixed else ("ragged rows", "Llama layers"))
        assert (applied.narrow is None) == bool(fixed)
        applied.remove()
        assert built.model.layers[0].forward.__func__ is usual
        assert built.config._attn_implementation == "sdpa"
        built(input_ids=torch.ones(1, 4, dtype=torch.int64))


def test_a_call_without_rows_is_refused() -> None:
    built = model("qwen2")
    use_ragged_attention(built)
    use_own_layers(built)
    with pytest.raises(RuntimeError) as caught:
        built(input_ids=torch.ones(1, 4, dtype=torch.int64))
    assert str(caught.value) == "ragged attention needs the rows of the micro-batch"
