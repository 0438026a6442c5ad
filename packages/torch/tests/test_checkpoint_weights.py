"""Weights read one by one are those of ``from_pretrained``; quantised ones are what they stand for, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_core.contracts.model import ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_huggingface.model_folder import LLAMA_LIKE, check_model_folder
from rl_torch.checkpoint_files import open_checkpoint
from rl_torch.models import build_config, build_model
from rl_torch.pretrained import empty_like, forget_quantization, load_pretrained
from rl_torch.quant_checks import folder_problems
from rl_torch.quantized import apply_scales, unpack_fp4
from rl_torch.weight_plan import WeightPlan
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

torch.set_num_threads(1)

FEW = [
    *("llama", "qwen2", "gpt2", "gemma2", "phi3", "mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "glm4_moe"),
    *("gpt_oss", "hunyuan_v1_moe", "olmoe"),
]
SMALL: dict[str, Any] = (
    {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "n_positions": 64}
    | {"n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 48}
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
)
WEIGHTS = "model.safetensors"


def tiny(architecture: str, **fields: Any) -> Any:
    """A model with random numbers in every parameter and persistent buffer."""
    kind = CONFIG_MAPPING[architecture]
    known = set(kind.__dataclass_fields__)
    config = kind(**{name: value for name, value in (SMALL | fields).items() if name in known})
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 3_000_000:
        pytest.skip("not small with these fields")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def plan_of(folder: Path) -> WeightPlan:
    files = open_checkpoint(str(folder))
    assert files is not None
    config = AutoConfig.from_pretrained(folder)
    forget_quantization(config)
    plan = WeightPlan.of(empty_like(AutoModelForCausalLM, config), files)
    assert plan is not None
    return plan


def assert_read_as_transformers_does(folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plan = plan_of(folder)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(plan.read(name).float(), tensor), name
        if tensor.dim() > 1:
            box = tuple(slice(n // 3, n - n // 4) for n in tensor.shape)
            assert torch.equal(plan.read(name, box).float(), tensor[box]), name
    whole, _ = load_pretrained(
        AutoModelForCausalLM, str(folder), AutoConfig.from_pretrained(folder), dtype=torch.float32
    )
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("architecture", FEW)
def test_every_parameter_is_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    model.save_pretrained(tmp_path / "one")
    assert_read_as_transformers_does(tmp_path / "one")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "two", max_shard_size="30KB")
    assert_read_as_transformers_does(tmp_path / "two")


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_parameter_of_every_family_is_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    try:
        model = tiny(architecture)
        model.save_pretrained(tmp_path)
    except Exception as error:
        pytest.skip(f"needs other fields: {error}")
    if architecture == "youtu":
        pytest.skip("transformers zeroes the padding row of what it has read")
    assert_read_as_transformers_does(tmp_path)


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({change(name): tensor for name, tensor in weights.items()}, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "glm4_moe"])
@pytest.mark.parametrize("tie", [True, False])
def test_names_without_the_prefix_are_read(architecture: str, tie: bool, tmp_path: Path) -> None:
    tiny(architecture, tie_word_embeddings=tie).save_pretrained(tmp_path)
    renamed(tmp_path, lambda name: name.removeprefix("model."))
    assert_read_as_transformers_does(tmp_path)


def test_norms_may_have_their_oldest_names(tmp_path: Path) -> None:
    tiny("bert", is_decoder=True).save_pretrained(tmp_path)
    renamed(
        tmp_path, lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    )
    assert any("gamma" in name for name in load_file(tmp_path / WEIGHTS))
    assert_read_as_transformers_does(tmp_path)


def test_a_tied_folder_may_have_either_name_or_both(tmp_path: Path) -> None:
    tiny("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    head = weights["model.embed_tokens.weight"]
    for names in (["lm_head.weight"], ["lm_head.weight", "model.embed_tokens.weight"]):
        rest = {name: tensor for name, tensor in weights.items() if name != "model.embed_tokens.weight"}
        save_file(rest | {name: head.clone() for name in names}, tmp_path / WEIGHTS, {"format": "pt"})
        assert_read_as_transformers_does(tmp_path)


def test_tied_parameters_that_differ_are_left_to_transformers_which_unties_them(tmp_path: Path) -> None:
    tiny("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}, tmp_path / WEIGHTS)
    files = open_checkpoint(str(tmp_path))
    assert files is not None
    config = build_config(ModelSpec(path=str(tmp_path)))
    assert WeightPlan.of(empty_like(AutoModelForCausalLM, config), files) is None
    built = build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32)
    assert torch.equal(built.lm_head.weight, built.model.embed_tokens.weight + 1)


def test_a_folder_of_pickles_is_read(tmp_path: Path) -> None:
    model = tiny("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    built = build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32).state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in model.state_dict().items())
    change_config(tmp_path, intermediate_size=24)
    with pytest.raises(EnvironmentProblem, match=r"mlp\.down_proj\.weight is \[32, 48\], not \[32, 24\]"):
        build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32)


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def quantised(
    folder: Path, architecture: str, quantise: Callable[[str, Tensor], dict[str, Tensor]], **options: Any
) -> Path:
    """A saved model whose linear layers' weights are replaced by what ``quantise`` makes of each."""
    tiny(architecture, hidden_size=160, intermediate_size=200, head_dim=40).save_pretrained(folder)
    weights = load_file(folder / WEIGHTS)
    for name in [n for n in weights if ".layers." in n and n.endswith("proj.weight")]:
        weights |= quantise(name, weights.pop(name))
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    change_config(folder, quantization_config=options)
    return folder


def blocks(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """float8 and float32 scales of blocks, the last of which are smaller."""
    rows, columns = weight.shape
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    values, scales = torch.empty_like(weight), torch.empty(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[i, j] = weight[at].abs().max() / 448
            values[at] = weight[at] / scales[i, j]
    return values.to(torch.float8_e4m3fn), scales


def fp8_blocks(name: str, weight: Tensor) -> dict[str, Tensor]:
    values, scales = blocks(weight, (128, 128))
    return {name: values, f"{name}_scale_inv": scales}


def fp8_rows(name: str, weight: Tensor) -> dict[str, Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 448
    return {name: (weight / scales).to(torch.float8_e4m3fn), f"{name}_scale": scales.bfloat16()}


def fp8_tensor(name: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().max() / 448
    extra = {f"{name.removesuffix('weight')}input_scale": torch.ones(1)}
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale.reshape(1), **extra}


def int8_rows(name: str, weight: Tensor) -> dict[str, Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 127
    return {name: (weight / scales).round().to(torch.int8), f"{name}_scale": scales}


@pytest.mark.parametrize(
    ("quantise", "options", "half_step"),
    [
        (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}, 2**-4),
        (fp8_rows, {"quant_method": "fbgemm_fp8"}, 2**-4 + 2**-8),
        (fp8_rows, {"quant_method": "compressed-tensors", "format": "float-quantized"}, 2**-4 + 2**-8),
        (fp8_tensor, {"quant_method": "compressed-tensors", "format": "float-quantized"}, 2**-4),
        (int8_rows, {"quant_method": "compressed-tensors", "format": "int-quantized"}, None),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_quantised_weights_are_what_they_stand_for(
    architecture: str, quantise: Any, options: dict[str, Any], half_step: float | None, tmp_path: Path
) -> None:
    plain = tiny(architecture, hidden_size=160, intermediate_size=200, head_dim=40).state_dict()
    folder = quantised(tmp_path, architecture, quantise, **options)
    plan = plan_of(folder)
    built = build_model(ModelSpec(path=str(folder)), dtype=torch.float32)
    assert not hasattr(built.config, "quantization_config")
    for name, want in plain.items():
        got = plan.read(name)
        assert torch.equal(got.float(), built.state_dict()[name]), name
        # float8 e4m3 has 3 bits behind the point, and 2^-9 at least; int8 has steps of a row's maximum / 127.
        bound = (
            want.abs().max() / 254 + 1e-7 if half_step is None else half_step * want.abs() + want.abs().max() * 2**-9
        )
        assert bool(((got.float() - want).abs() <= bound).all()), name
        if got.dim() > 1:
            box = (*(slice(0, n) for n in got.shape[:-2]), slice(3, got.shape[-2]), slice(5, 139))
            box = tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, got.shape, strict=True))
            assert torch.equal(plan.read(name, box), got[box]), name


def test_blocks_are_scaled_as_transformers_does() -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 256, 384, generator=draws).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 2, 3, generator=draws)
    for scales in (scale, scale.to(torch.float8_e8m0fnu), (scale * 20 + 110).to(torch.uint8)):
        theirs = Fp8Dequantize(None)._dequantize_one(weight, scales, output_dtype=torch.float32)
        assert torch.equal(apply_scales(weight, scales, block=(128, 128)), theirs)


def test_gpt_oss_as_it_is_published_is_unpacked_as_transformers_does(tmp_path: Path) -> None:
    model = tiny("gpt_oss", hidden_size=64, intermediate_size=32)
    model.save_pretrained(tmp_path)
    weights, draws = load_file(tmp_path / WEIGHTS), torch.Generator().manual_seed(0)
    for name in [n for n in weights if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = weights.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=draws, dtype=torch.uint8)
        scales = torch.randint(118, 124, (experts, rows, columns // 32), generator=draws, dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert torch.equal(unpack_fp4(blocks, scales), theirs)
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    change_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    plan, theirs = plan_of(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    config = AutoConfig.from_pretrained(tmp_path)
    forget_quantization(config)
    whole, _ = load_pretrained(AutoModelForCausalLM, str(tmp_path), config, dtype=torch.float32)
    ours = whole.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[name], tensor.float()), name  # bfloat16 holds these numbers exactly
        assert torch.equal(plan.read(name).float(), tensor.float()), name
    some = "model.layers.0.mlp.experts.gate_up_proj"
    box = (slice(1, 3), slice(5, 40), slice(0, 7))
    assert torch.equal(plan.read(some, box), plan.read(some)[box])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"F8_E4M3 \[160, 200\], but its scales .* \[2, 2\]"),
        ({"quant_method": "fp8", "weight_block_size": "x"}, "block size"),
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "compressed-tensors", "transform_config": {"a": 1}}, "'compressed-tensors'"),
        (None, r"F8_E4M3 \[160, 200\]"),
    ],
)
def test_a_quantisation_that_is_not_known_is_refused(options: Any, says: str, tmp_path: Path) -> None:
    folder = quantised(tmp_path, "llama", fp8_blocks)
    change_config(folder, quantization_config=options)
    with pytest.raises(EnvironmentProblem, match=says) as caught:
        build_model(ModelSpec(path=str(folder)), dtype=torch.float32)
    assert str(tmp_path) in str(caught.value)
    for problem in folder_problems(str(folder)):  # from the config.json alone
        assert f"{problem.message}\n    {problem.fix}" == str(caught.value)
    assert bool(list(folder_problems(str(folder)))) == (says[0] == "'")


@pytest.mark.parametrize("architecture", sorted(LLAMA_LIKE))
def test_what_transformers_writes_fits_its_own_config(architecture: str, tmp_path: Path) -> None:
    tiny(architecture).save_pretrained(tmp_path)
    check_model_folder(tmp_path)
    change_config(tmp_path, vocab_size=1000)
    with pytest.raises(EnvironmentProblem, match=r"is \[128, 32\], not \[1000, 32\]"):
        check_model_folder(tmp_path)


def test_a_classifier_is_no_reward_model(tmp_path: Path) -> None:
    config = tiny("llama").config
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(EnvironmentProblem, match="a classifier with 2 labels"):
        build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32, head="scalar")


def test_weights_of_layers_that_the_model_lacks_are_refused_and_older_tables_are_not(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    known = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "v_head.weight": torch.zeros(1, 32),
        "score.weight": torch.zeros(1, 32),
    }
    save_file(weights | known, tmp_path / WEIGHTS, {"format": "pt"})
    build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32)
    for name in ("model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "layers.1.extra.weight"):
        save_file(weights | {name: torch.zeros(48, 32)}, tmp_path / WEIGHTS, {"format": "pt"})
        with pytest.raises(EnvironmentProblem, match=name):
            build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    tiny("glm4_moe").save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    extra = {"model.layers.2.eh_proj.weight": torch.zeros(32, 64)}
    save_file(weights | extra, tmp_path / WEIGHTS, {"format": "pt"})
    change_config(tmp_path, num_nextn_predict_layers=1)
    model = build_model(ModelSpec(path=str(tmp_path)), dtype=torch.float32)
    assert not any("eh_proj" in name for name in model.state_dict())
