"""Chunked token log-probs against full logits in float64."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from rl_torch.logprobs import CHUNK_ELEMENTS, chunk_size, token_outputs
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)

ALL = ("logprobs", "entropy", "mean_logprobs", "logsumexp")


def problem(count: int = 7, width: int = 5, vocab: int = 11, dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(vocab, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, vocab, (count,), generator=generator)


def naive(hidden, weight, bias, targets, temperature=1.0):
    z = (hidden @ weight.T + (0 if bias is None else bias)) / temperature
    log_p = torch.log_softmax(z, -1)
    return {
        "logprobs": log_p.gather(1, targets[:, None])[:, 0],
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "mean_logprobs": log_p.mean(-1),
        "logsumexp": z.logsumexp(-1),
    }


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_equal_full_logits(chunk: int, temperature: float, with_bias: bool) -> None:
    hidden, weight, bias, targets = problem()
    bias = bias if with_bias else None
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    weights = torch.randn(len(ALL), 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = token_outputs(hidden, weight, targets, outputs=ALL, bias=bias, temperature=temperature, chunk_tokens=chunk)
    expected = naive(hidden, weight, bias, targets, temperature)
    assert tuple(found) == ALL
    for name in ALL:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12, msg=name)

    def gradients(values):
        return torch.autograd.grad(sum((w * values[n]).sum() for w, n in zip(weights, ALL, strict=True)), inputs)

    for a, b in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("outputs", [c for n in range(1, 4) for c in combinations(ALL, n)], ids="+".join)
def test_any_selection_of_outputs_has_its_own_gradient(outputs: tuple[str, ...]) -> None:
    hidden, weight, _, targets = problem()
    found = token_outputs(hidden, weight, targets, outputs=outputs, chunk_tokens=3)
    expected = naive(hidden, weight, None, targets)
    assert tuple(found) == outputs

    def gradients(values):
        return torch.autograd.grad(sum(values[n].square().sum() for n in outputs), (hidden, weight))

    for a, b in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("outputs", [*((n,) for n in ALL), ALL], ids="+".join)
def test_gradcheck_passes(chunk: int, outputs: tuple[str, ...]) -> None:
    hidden, weight, bias, targets = problem()

    def values(h, w, b):
        found = token_outputs(h, w, targets, outputs=outputs, bias=b, temperature=0.9, chunk_tokens=chunk)
        return tuple(found.values())

    assert torch.autograd.gradcheck(values, (hidden, weight, bias))


def test_the_mean_log_prob_and_the_logsumexp_of_two_logits_by_hand() -> None:
    """Logits [ln 3, 0]: logsumexp = ln 4, log p = [ln 3/4, ln 1/4], mean = (ln 3 - 2 ln 4) / 2 = -0.8369882."""
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[3.0], [1.0]]).log()
    found = token_outputs(hidden, weight, torch.tensor([1]), outputs=("mean_logprobs", "logsumexp"))
    assert found["logsumexp"].item() == pytest.approx(1.3862944, abs=1e-6)
    assert found["mean_logprobs"].item() == pytest.approx(-0.8369882, abs=1e-6)


@pytest.mark.parametrize("chunk", [2, 100])
def test_bf16_inputs_are_reduced_in_fp32(chunk: int) -> None:
    hidden, weight, _, targets = problem(count=40, width=16, vocab=64, dtype=torch.bfloat16)
    found = token_outputs(hidden, weight, targets, outputs=ALL, chunk_tokens=chunk)
    expected = naive(hidden.double(), weight.double(), None, targets)
    for name in ALL:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), expected[name], rtol=0, atol=0.1, msg=name)
    for name in ("logprobs", "logsumexp"):
        gradients = torch.autograd.grad(found[name].sum(), (hidden, weight), retain_graph=True)
        exact = torch.autograd.grad(expected[name].sum(), (hidden, weight), retain_graph=True)
        assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
        for a, b in zip(gradients, exact, strict=True):
            assert (a.double() - b.double()).abs().max() < 0.02 * b.abs().max()


def test_no_tokens_give_no_values_and_zero_gradients() -> None:
    hidden, weight, _, targets = problem(count=0)
    found = token_outputs(hidden, weight, targets, outputs=ALL)
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(ALL, (0,))
    assert not torch.autograd.grad(sum(v.sum() for v in found.values()), weight)[0].any()


def test_chunks_hold_64_megabytes_of_logits() -> None:
    assert chunk_size(128) == CHUNK_ELEMENTS // 128
    assert chunk_size(151_936) == 110
    assert chunk_size(10**8) == 16


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def test_the_full_logits_never_exist() -> None:
    count, vocab, chunk = 400, 300, 20
    hidden, weight, _, targets = problem(count=count, width=4, vocab=vocab)
    with LargestTensor() as largest:
        found = token_outputs(hidden, weight, targets, outputs=ALL, chunk_tokens=chunk)
        sum(value.sum() for value in found.values()).backward()
    assert largest.elements == chunk * vocab
    with LargestTensor() as largest:
        naive(hidden, weight, None, targets)
    assert largest.elements == count * vocab


def test_nothing_of_the_vocabulary_is_kept_for_the_backward_pass_of_several_chunks() -> None:
    hidden, weight, _, targets = problem(count=60, vocab=50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        token_outputs(hidden, weight, targets, outputs=ALL, chunk_tokens=20)
    assert max(kept) == hidden.numel()
