"""Layers taken apart compute what the whole model does, with the same weights."""

from __future__ import annotations

import pytest
import torch
from rl_core.contracts.model import ModelSpec
from rl_generation_hf.cache import SlotCache
from rl_generation_hf.forward import WholeModel, forward_of
from rl_generation_hf.masks import AttentionPattern
from rl_kernels_cpu import products
from rl_kernels_cpu.llama_decoding import LlamaLayers
from rl_kernels_cpu.products import Product
from rl_torch.models import build_model
from torch import nn

ARCHITECTURES = {
    "llama": ("llama", {"kv_heads": 1}),
    "llama with biases": ("llama", {"extra": {"attention_bias": True, "mlp_bias": True}}),
    "mistral with a window": ("mistral", {"extra": {"sliding_window": 4}}),
    "qwen2": ("qwen2", {"kv_heads": 4, "tie_embeddings": True}),
    "qwen2 with a window on one layer": (
        "qwen2",
        {
            "extra": {
                "use_sliding_window": True,
                "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention"],
            }
        },
    ),
    "qwen3": ("qwen3", {}),
}
LENGTHS = {"prompts of one length": [7, 7, 7], "prompts of different lengths": [9, 6, 1]}


@torch.inference_mode()
def logits(model, kind, lengths):
    """Behind the prompts and behind three further tokens of each."""
    cache = SlotCache(len(model.model.layers))
    cache.resize(slots=len(lengths), columns=16, keep_rows=0, keep_columns=0)
    forward = kind(model, cache, AttentionPattern.of(model))
    tokens = torch.randint(0, 48, (len(lengths), 12), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor(lengths)
    cache.start_prefill(source=torch.arange(len(lengths)), first=0)
    found = [forward.prefill(tokens[:, : max(lengths)], positions)]
    for step in range(3):
        longest, equal = int(positions.max()), bool((positions == positions[0]).all())
        cache.start_step(positions=positions, longest=longest, equal=equal)
        found.append(forward.decode(tokens[:, 9 + step], positions, longest=longest, equal=equal))
        positions = positions + 1
    return torch.stack(found)


def spec(architecture="qwen2", **fields):
    """Two layers of width 32 with grouped-query attention; weights large enough for uneven distributions."""
    extra = {"initializer_range": 0.3, **fields.pop("extra", {})}
    init = {"architecture": architecture, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64}
    return ModelSpec(init={**init, "tie_embeddings": False, "extra": extra, **fields}, vocab_size=48, max_length=64)


@pytest.fixture
def build():
    """Build a model whose biases and norms, which begin as zeros and ones, are anything."""

    def built(architecture, fields, dtype=torch.float32):
        model = build_model(spec(architecture, **fields), dtype=dtype).eval()
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
        return model

    return built


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("architecture", "fields"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_logits_are_those_of_the_whole_model(architecture, fields, lengths, build):
    model = build(architecture, fields, torch.float64)
    expected = logits(model, WholeModel, lengths)
    assert LlamaLayers.fit(model)
    found = logits(model, LlamaLayers, lengths)
    assert found.dtype == torch.float64
    assert expected.abs().max() > 1
    # Norms and angles are computed in float32, whose rounding differs between the two.
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_in_float32_logits_are_as_close_to_exact_ones_as_those_of_the_whole_model(build):
    ours, theirs = [], []
    for architecture, fields in ARCHITECTURES.values():
        for lengths in LENGTHS.values():
            exact = logits(build(architecture, fields).double(), WholeModel, lengths)
            model = build(architecture, fields)
            theirs.append((logits(model, WholeModel, lengths) - exact).abs().max() / exact.abs().max())
            ours.append((logits(model, LlamaLayers, lengths) - exact).abs().max() / exact.abs().max())
    assert sum(ours) <= 1.3 * sum(theirs)
    assert max(ours) <= 1.3 * max(theirs)  # of one model: how much rounding it magnifies depends on the CPU's products


def test_in_16_bits_logits_are_as_close_to_exact_ones_as_those_of_the_whole_model(build):
    ours, theirs = [], []
    for architecture, fields in ARCHITECTURES.values():
        model = build(architecture, fields).bfloat16()
        for lengths in LENGTHS.values():
            exact = logits(model.float(), WholeModel, lengths)
            model.bfloat16()
            theirs.append((logits(model, WholeModel, lengths) - exact).square().mean())
            ours.append((logits(model, LlamaLayers, lengths) - exact).square().mean())
    assert 0 < sum(ours) <= 1.1 * sum(theirs)


def test_the_weights_stay_the_models_own_and_their_memory_is_not_doubled():
    model = build_model(spec(), dtype=torch.float32).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = forward_of(model, SlotCache(2), ("cpu",))
    assert isinstance(layers, LlamaLayers)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    attention = model.model.layers[0].self_attn
    storages = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(storages) == 1
    memory = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(memory.values()) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("outputs", [64, 512])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mkl_at_home", [True, False])
def test_a_product_is_that_of_its_present_weight(outputs, bias, mkl_at_home, monkeypatch):
    """The larger weight, on MKL's own CPUs both, are kept in another order."""
    monkeypatch.setattr(products, "mkl_at_home", lambda: mkl_at_home)
    layer = nn.Linear(256, outputs, bias=bias)
    x = torch.randn(5, 3, 300)[:, :, 20:276]
    with torch.inference_mode():
        product = Product(layer.weight, layer.bias)
        for _ in range(2):
            # sqrt(256) units of 2⁻²⁴ of the sum of 256 products of about 0.8 and at most 2/16, whose mean is half of it
            assert (product(x) - layer(x)).abs().max() < 16 * 2**-24 * 256 * 0.8 / 16
            layer.weight.mul_(-2)
            product.refresh()


@pytest.mark.parametrize("outputs", [64, 512])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mkl_at_home", [True, False])
def test_where_bfloat16_is_slower_a_product_is_that_of_float32_rounded(outputs, bias, mkl_at_home, monkeypatch):
    monkeypatch.setattr(products, "mkl_at_home", lambda: mkl_at_home)
    monkeypatch.setattr(products, "bfloat16_is_slower", lambda: True)
    layer = nn.Linear(256, outputs, bias=bias).bfloat16()
    x = torch.randn(5, 3, 256).bfloat16()
    with torch.inference_mode():
        product = Product(layer.weight, layer.bias)
        for _ in range(2):
            found = product(x)
            assert found.dtype == torch.bfloat16
            exact = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
            assert ((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()
            layer.weight.mul_(-2)
            product.refresh()


class _Adapter(nn.Linear):
    """A projection that is more than its weight."""


def test_other_models_are_called_whole():
    adapted = build_model(spec(), dtype=torch.float32)
    projection = adapted.model.layers[1].mlp.up_proj
    adapted.model.layers[1].mlp.up_proj = _Adapter(projection.in_features, projection.out_features, bias=False)
    relu = build_model(spec("llama", extra={"hidden_act": "relu"}), dtype=torch.float32)
    gemma = build_model(spec("gemma2", extra={"query_pre_attn_scalar": 8}), dtype=torch.float32)
    for model in (adapted, relu, gemma):
        assert isinstance(forward_of(model.eval(), SlotCache(2), ("cpu",)), WholeModel)
