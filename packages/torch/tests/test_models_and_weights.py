"""Building models, and carrying weights between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rl_core.contracts.backend import WeightBucket
from rl_core.contracts.model import ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.models import build_config, build_model
from rl_torch.weights import from_buckets, load_buckets_into, to_buckets

torch.set_num_threads(1)


def spec(architecture: str = "qwen2", *, seed: int = 0, tie: bool = True, **extra: object) -> ModelSpec:
    init = {
        "architecture": architecture,
        "hidden_size": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": None,
        "ffn": None,
        "tie_embeddings": tie,
        "extra": extra,
    }
    tokens = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    return ModelSpec(init=init, vocab_size=50, special_tokens=tokens, max_length=64, seed=seed)


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = parameters(a), parameters(b)
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_the_config_follows_the_shape() -> None:
    config = build_config(spec("qwen3", rope_theta=5000.0, attention_dropout=0.1))
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (32, 128, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 8)
    assert (config.vocab_size, config.max_position_embeddings) == (50, 64)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (1, 0, None)
    assert config.attention_dropout == 0.1, "an export writes it"


def test_extra_fields_win_over_derived_ones() -> None:
    assert build_config(spec("qwen3", head_dim=16)).head_dim == 16


def test_weights_depend_on_the_seed_only_and_global_randomness_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = build_model(spec(seed=4), dtype=torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert_equal(first, build_model(spec(seed=4), dtype=torch.float32))
    other = build_model(spec(seed=5), dtype=torch.float32)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_a_bf16_model_is_the_rounded_fp32_one_with_exact_rotary_frequencies() -> None:
    exact, rounded = (build_model(spec(), dtype=d) for d in (torch.float32, torch.bfloat16))
    for name, value in parameters(exact).items():
        assert torch.equal(parameters(rounded)[name], value.bfloat16())
    assert torch.equal(rounded.model.rotary_emb.inv_freq, exact.model.rotary_emb.inv_freq)
    assert rounded.lm_head.weight is rounded.model.embed_tokens.weight


def test_a_saved_model_is_read_back(tmp_path: Path) -> None:
    model = build_model(spec(), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert_equal(model, build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32))


def test_a_new_scalar_head_is_zero_and_a_saved_one_is_kept(tmp_path: Path) -> None:
    build_model(spec(), dtype=torch.float32).save_pretrained(tmp_path / "lm")
    model = build_model(ModelSpec(path=str(tmp_path / "lm")), dtype=torch.float32, head="scalar")
    assert not model.score.weight.any()
    torch.nn.init.ones_(model.score.weight)
    model.save_pretrained(tmp_path / "reward")
    again = build_model(ModelSpec(path=str(tmp_path / "reward")), dtype=torch.float32, head="scalar")
    assert_equal(model, again)


def test_a_new_scalar_model_names_the_tokenizers_padding_or_else_its_end_token(tmp_path: Path) -> None:
    language_model = build_model(spec(), dtype=torch.float32)
    language_model.config.pad_token_id = None
    language_model.save_pretrained(tmp_path / "lm")
    for special, expected in (
        ({"pad_token_id": 7, "eos_token_id": 1}, 7),
        ({"pad_token_id": None, "eos_token_id": 1}, 1),
        ({}, None),
    ):
        source = ModelSpec(path=str(tmp_path / "lm"), special_tokens=special)
        model = build_model(source, dtype=torch.float32, head="scalar")
        assert model.config.pad_token_id == expected
        # An embedding that knows its padding row would not train it.
        assert model.get_input_embeddings().padding_idx is None
    assert build_model(source, dtype=torch.float32).config.pad_token_id is None


def test_a_saved_reward_model_keeps_its_padding_token(tmp_path: Path) -> None:
    build_model(spec(), dtype=torch.float32, head="scalar").save_pretrained(tmp_path)
    source = ModelSpec(path=str(tmp_path), special_tokens={"pad_token_id": 7, "eos_token_id": 7})
    assert build_model(source, dtype=torch.float32, head="scalar").config.pad_token_id == 0


def test_an_architecture_whose_head_is_another_is_refused() -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        build_model(spec("modernbert-decoder", bos_token_id=2), dtype=torch.float32, head="scalar")
    assert str(caught.value) == (
        "ModernBertDecoderForSequenceClassification has no linear layer 'score' without bias, which reward and value "
        "models need; choose another architecture"
    )


def test_a_reward_model_is_not_taken_for_a_language_model(tmp_path: Path) -> None:
    build_model(spec(tie=False), dtype=torch.float32, head="scalar").save_pretrained(tmp_path)
    with pytest.raises(EnvironmentProblem) as caught:
        build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32)
    assert str(caught.value).startswith(f"the model {tmp_path}: the files lack the weights lm_head.weight\n    ")


def test_an_unknown_architecture_is_answered_with_a_near_one() -> None:
    import transformers

    with pytest.raises(EnvironmentProblem) as caught:
        build_config(spec("qwen_2"))
    first, second = str(caught.value).split("\n")
    version = transformers.__version__
    assert first == f"model.init.architecture: transformers {version} knows no model type 'qwen_2'"
    assert second.startswith("    did you mean qwen2")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32)
    text = str(caught.value)
    assert text.startswith(f"the folder {tmp_path} is no model: it has no config.json (it holds nothing)\n")
    assert text.endswith("give a Hugging Face folder with config.json, or a hub id this machine can download")


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bucket_bytes", [1, 5_000, 2**28])
def test_weights_travel_in_buckets_of_any_size(tie: bool, bucket_bytes: int) -> None:
    source = build_model(spec(tie=tie), dtype=torch.float32)
    target = build_model(spec(tie=tie), dtype=torch.float32, random_init=False)
    buckets = list(to_buckets(source.named_parameters(), bucket_bytes=bucket_bytes))
    for bucket in buckets:
        bucket.data.flags.writeable = False  # as Ray hands them out
        assert len(bucket.data) <= bucket_bytes or len(bucket.names) == 1
    load_buckets_into(target, buckets)
    assert_equal(source, target)
    assert (target.lm_head.weight is target.model.embed_tokens.weight) == tie


def test_bf16_and_odd_sizes_keep_their_bits() -> None:
    tensors = {
        "odd": torch.randn(3).bfloat16(),
        "after": torch.randn(2, 2),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }
    (bucket,) = to_buckets(tensors.items())
    assert bucket.dtypes == ("bfloat16", "float32", "int64", "float32", "float32")
    found = dict(from_buckets([bucket]))
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_gathering_is_lazy() -> None:
    asked = []

    def stream():
        for i in range(4):
            asked.append(i)
            yield str(i), torch.zeros(10)

    first = next(to_buckets(stream(), bucket_bytes=80))
    assert first.names == ("0", "1")
    assert asked == [0, 1, 2]


def test_both_names_of_a_tied_parameter_are_accepted() -> None:
    model = build_model(spec(), dtype=torch.float32)
    named = {n: t for n, t in model.state_dict().items() if n != "model.embed_tokens.weight"}
    assert "lm_head.weight" in named
    load_buckets_into(model, to_buckets(named.items()))


def test_weights_reach_parameters_of_any_layout_and_type_in_place() -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
            self.after = torch.nn.Parameter(torch.zeros(2, 2))
            self.transposed = torch.nn.Parameter(torch.zeros(3, 2).T)
            self.narrow = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
            self.register_buffer("count", torch.tensor(0))

    model = Mixed()
    memory = {n: t.data_ptr() for n, t in model.state_dict().items()}
    sent = {
        "odd": torch.randn(3).bfloat16(),
        "after": torch.randn(2, 2),  # begins at an odd multiple of two bytes
        "transposed": torch.arange(6.0).reshape(2, 3),
        "narrow": torch.tensor([1.0, 2.5, -3.0, 1e-3]),
        "count": torch.tensor(7),
    }
    buckets = list(to_buckets(sent.items()))
    buckets[0].data.flags.writeable = False  # as from Ray
    load_buckets_into(model, buckets)
    for name, value in model.state_dict().items():
        assert torch.equal(value, sent[name].to(value.dtype))
        assert value.data_ptr() == memory[name]


def test_weights_that_do_not_fit_are_listed_and_nothing_is_written() -> None:
    model = build_model(spec(), dtype=torch.float32)
    before = {n: p.clone() for n, p in parameters(model).items()}
    named = {n: torch.zeros_like(p) for n, p in before.items()}
    del named["model.norm.weight"]
    named["model.extra"] = torch.zeros(1)
    named["model.embed_tokens.weight"] = torch.zeros(49, 32)
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_buckets_into(model, to_buckets(named.items()))
    assert str(caught.value) == (
        "weights do not fit the model; missing: model.norm.weight; unexpected: model.extra; "
        "wrong shape: model.embed_tokens.weight is [49, 32], the model's is [50, 32]"
    )
    for name, value in before.items():
        assert torch.equal(parameters(model)[name], value)


def test_an_empty_list_of_buckets_misses_everything() -> None:
    with pytest.raises(ValueError, match=r"weights do not fit the model; missing: weight, bias"):
        load_buckets_into(torch.nn.Linear(2, 2), [])
    load_buckets_into(torch.nn.Identity(), [WeightBucket((), (), (), np.zeros(0, np.uint8))])


def test_an_architecture_whose_heads_differ_in_size_between_layers_has_a_config() -> None:
    init = {"architecture": "gemma4_text", "hidden_size": 32, "layers": 2, "heads": 4}
    config = build_config(ModelSpec(init=init, vocab_size=50, max_length=32))
    assert [layer.head_dim for layer in config.per_layer_config] == [256, 512]
