"""Chunked token log-probs against full logits in float64."""

from __future__ import annotations

import pytest
import torch
from rl_torch.logprobs import CHUNK_ELEMENTS, chunk_size, token_logprobs
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)


def problem(count: int = 7, width: int = 5, vocab: int = 11, dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(vocab, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, vocab, (count,), generator=generator)


def naive(hidden, weight, bias, targets, temperature):
    z = (hidden @ weight.T + (0 if bias is None else bias)) / temperature
    log_p = torch.log_softmax(z, -1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_equal_full_logits(chunk: int, temperature: float, with_bias: bool) -> None:
    hidden, weight, bias, targets = problem()
    bias = bias if with_bias else None
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    found = token_logprobs(
        hidden, weight, targets, bias=bias, temperature=temperature, entropy=True, chunk_tokens=chunk
    )
    expected = naive(hidden, weight, bias, targets, temperature)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)

    def gradients(pair):
        return torch.autograd.grad((pair[0] * weights).sum() + (pair[1] * weights.flip(0)).sum(), inputs)

    for a, b in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("chunk", [2, 100])
def test_gradcheck_passes(chunk: int) -> None:
    hidden, weight, bias, targets = problem()
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs(h, w, targets, bias=b, temperature=0.9, entropy=True, chunk_tokens=chunk),
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("chunk", [2, 100])
def test_bf16_inputs_are_reduced_in_fp32(chunk: int) -> None:
    hidden, weight, _, targets = problem(count=40, width=16, vocab=64, dtype=torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, weight, targets, entropy=True, chunk_tokens=chunk)
    expected, expected_entropy = naive(hidden.double(), weight.double(), None, targets, 1.0)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=0, atol=0.1)
    found = torch.autograd.grad(logprobs.sum(), (hidden, weight))
    assert [g.dtype for g in found] == [torch.bfloat16] * 2
    for a, b in zip(found, torch.autograd.grad(expected.sum(), (hidden, weight)), strict=True):
        assert (a.double() - b.double()).abs().max() < 0.02 * b.abs().max()


def test_no_tokens_give_no_values_and_zero_gradients() -> None:
    hidden, weight, _, targets = problem(count=0)
    logprobs, entropy = token_logprobs(hidden, weight, targets, entropy=True)
    assert logprobs.shape == entropy.shape == (0,)
    assert not torch.autograd.grad(logprobs.sum() + entropy.sum(), weight)[0].any()


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
        logprobs, entropy = token_logprobs(hidden, weight, targets, entropy=True, chunk_tokens=chunk)
        (logprobs.sum() + entropy.sum()).backward()
    assert largest.elements == chunk * vocab
    with LargestTensor() as largest:
        naive(hidden, weight, None, targets, 1.0)
    assert largest.elements == count * vocab


def test_nothing_of_the_vocabulary_is_kept_for_the_backward_pass_of_several_chunks() -> None:
    hidden, weight, _, targets = problem(count=60, vocab=50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        token_logprobs(hidden, weight, targets, entropy=True, chunk_tokens=20)
    assert max(kept) == hidden.numel()
