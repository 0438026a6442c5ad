"""Adapters on many architectures: what generators get, what is exported, saved and switched off, against peft."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from architectures import FIELDS, VOCABULARY, tiny_model
from fsdp2_helpers import export_random_adapter, train, train_with_adapter
from ranks import Ranks
from rl_backend_fsdp2.targets import choose_targets
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import AdapterSpec, ModelSpec, Role
from rl_core.errors import ConfigError
from rl_torch.engine.testing.examples import SCORES, random_batch
from rl_torch.weights import load_buckets_into, to_buckets
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

ADAPTERS = {
    "lora": AdapterSpec("lora", rank=4, alpha=8.0, seed=1),
    "dora": AdapterSpec("dora", rank=4, alpha=8.0, seed=1),
    "adalora": AdapterSpec(
        "adalora", rank=2, alpha=8.0, initial_rank=4, prune_from_step=1, prune_to_step=3, orthogonality=0.1, seed=1
    ),
}
SUITE = [
    ("lora", "gpt2"),  # weights [in, out]
    ("dora", "gpt2"),
    ("lora", "falcon"),  # a linear class of its own
    ("lora", "phimoe"),  # a router that is a linear class
    ("lora", "qwen3_moe"),  # dense layers and fused experts
    ("lora", "deepseek_v3"),  # and shared experts
    ("adalora", "deepseek_v3"),
]
PADDED = {"packing": "padded"}
CONFIGS: dict[str, dict[str, Any]] = {"opt": PADDED, "falcon": PADDED}
EXPORT_ONLY = ("bloom", "gpt_oss", "llama4_text", "jamba")
"""Only their adapters are tested: transformers has them without SDPA, or the backend refuses to train them."""

SAME = 1e-5
"""Log-probs in float32 of the same weights."""

REORDERED = 3e-5
"""Log-probs in float32 of W x + B A x and (W + B A) x."""

LOSSES = SCORES


def logprobs(model: torch.nn.Module) -> Tensor:
    ids = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids).logits.log_softmax(-1)


def token_logprobs(model: torch.nn.Module, batch: SequenceBatch) -> np.ndarray:
    """float32 [T]: of each token after those before it; 0 for first ones."""
    found = []
    for i in range(len(batch)):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
        with torch.no_grad():
            log_p = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
        found += [torch.zeros(1), log_p[:-1].gather(1, tokens[1:, None])[:, 0]]
    return torch.cat(found).numpy()


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def read(path: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    """As transformers reads a folder; fails where it says anything of the weights it found."""
    options = {"attn_implementation": "eager", **options}  # what SDPA leaves out: soft-caps of scores
    model, info = auto.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def with_peft(base: PreTrainedModel, adapter: Path) -> Any:
    """As peft reads an adapter; fails where it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return peft.PeftModel.from_pretrained(base, str(adapter)).eval()


def names_and_shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path / "model.safetensors", framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping


def check_everything(run: Callable[..., Any], kind: str, architecture: str, folder: Path) -> None:
    """Train ``kind`` of adapter on ``architecture``, and compare all that comes out with peft and transformers."""
    base = tiny_model(architecture)
    base.save_pretrained(folder / "base")
    spec = ModelSpec(path=str(folder / "base"), max_length=128, adapter=ADAPTERS[kind])
    batch = random_batch()
    ran = run(batch=batch, steps=4, spec=spec, directory=str(folder), config=CONFIGS.get(architecture, {}))
    merged = read(folder / "export")
    with_adapter = with_peft(read(folder / "base"), folder / "export" / "adapter")
    assert difference(logprobs(with_adapter), logprobs(merged)) < REORDERED
    by_peft = logprobs(with_adapter.merge_and_unload())

    generator = tiny_model(architecture, seed=9)
    load_streamed(generator, ran["weights"])
    assert difference(logprobs(generator), by_peft) < SAME
    assert difference(logprobs(merged), by_peft) < SAME
    assert difference(logprobs(base), by_peft) > 100 * SAME, "nothing was trained"
    assert names_and_shapes(folder / "export") == names_and_shapes(folder / "base")

    for name, weight in ran["weights"].items():
        np.testing.assert_array_equal(ran["restored"][name], weight, err_msg=name)
    load_streamed(generator, ran["reference weights"])
    assert difference(logprobs(generator), logprobs(base)) == 0
    scored = batch.token_columns["loss_mask"] > 0
    np.testing.assert_allclose(ran["reference"][scored], token_logprobs(base, batch)[scored], atol=SAME, rtol=0)


def load_streamed(model: PreTrainedModel, weights: dict[str, np.ndarray]) -> None:
    """What the generator ``hf`` does with the weights that are sent to it."""
    load_buckets_into(model, list(to_buckets((name, torch.from_numpy(w)) for name, w in weights.items())))


@pytest.mark.parametrize(("kind", "architecture"), SUITE)
def test_an_adapter_is_the_same_in_generators_exports_checkpoints_and_peft(
    single: Ranks, kind: str, architecture: str, tmp_path: Path
) -> None:
    check_everything(lambda **options: single(train_with_adapter, **options)[0], kind, architecture, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", [name for name in FIELDS if name not in EXPORT_ONLY])
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("world", [1, 2])
def test_an_adapter_is_the_same_everywhere_on_every_architecture(
    single: Ranks, pair: Ranks, kind: str, architecture: str, world: int, tmp_path: Path
) -> None:
    ranks = single if world == 1 else pair
    check_everything(lambda **options: ranks(train_with_adapter, **options)[0], kind, architecture, tmp_path)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("architecture", EXPORT_ONLY)
def test_an_adapter_is_the_same_in_exports_and_peft_on_models_that_are_not_trained_here(
    single: Ranks, kind: str, architecture: str, tmp_path: Path
) -> None:
    base = tiny_model(architecture, attn_implementation="eager")
    base.save_pretrained(tmp_path / "base")
    single(export_random_adapter, adapter=ADAPTERS[kind], architecture=architecture, directory=str(tmp_path / "export"))
    merged = read(tmp_path / "export")
    with_adapter = with_peft(read(tmp_path / "base"), tmp_path / "export" / "adapter")
    assert difference(logprobs(with_adapter), logprobs(merged)) < REORDERED
    assert difference(logprobs(with_adapter.merge_and_unload()), logprobs(merged)) < SAME
    assert difference(logprobs(base), logprobs(merged)) > 100 * SAME
    assert names_and_shapes(tmp_path / "export") == names_and_shapes(tmp_path / "base")


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3_moe"])
def test_a_sharded_adapter_is_trained_as_a_whole_one(
    single: Ranks, pair: Ranks, architecture: str, tmp_path: Path
) -> None:
    tiny_model(architecture).save_pretrained(tmp_path / "base")
    spec = ModelSpec(path=str(tmp_path / "base"), max_length=128, adapter=ADAPTERS["lora"])
    options: dict[str, Any] = {"batch": random_batch(), "steps": 2, "spec": spec}
    whole = single(train_with_adapter, **options, directory=str(tmp_path / "whole"))[0]
    parts = pair(train_with_adapter, **options, directory=str(tmp_path / "parts"))
    assert parts[0]["weights"].keys() == whole["weights"].keys()
    for name, weight in whole["weights"].items():
        np.testing.assert_allclose(parts[0]["weights"][name], weight, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral", "gpt2"])
def test_an_export_of_full_training_is_what_save_pretrained_writes(
    single: Ranks, pair: Ranks, architecture: str, tmp_path: Path
) -> None:
    base = tiny_model(architecture)
    base.save_pretrained(tmp_path / "base")
    spec = ModelSpec(path=str(tmp_path / "base"), max_length=128)
    for ranks, folder in ((single, tmp_path / "single"), (pair, tmp_path / "pair")):
        ran = ranks(train, batch=random_batch(), spec=spec, export=str(folder))[0]
        load_streamed(base, ran["weights"])
        base.save_pretrained(folder / "expected")
        ours, expected = (load_file(path / "model.safetensors") for path in (folder, folder / "expected"))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_an_exported_adapter_has_the_scalar_head_that_was_trained_beside_it(single: Ranks, tmp_path: Path) -> None:
    auto = AutoModelForSequenceClassification
    tiny_model("qwen3_moe", auto=auto, num_labels=1, pad_token_id=0).save_pretrained(tmp_path / "base")
    role = Role("value", trainable=True, head="scalar")
    options: dict[str, Any] = {"batch": random_batch(), "steps": 3, "role": role, "loss": LOSSES}
    spec = ModelSpec(path=str(tmp_path / "base"), max_length=128, adapter=ADAPTERS["lora"])
    single(train_with_adapter, **options, spec=spec, directory=str(tmp_path))
    base = read(tmp_path / "base", auto, num_labels=1)
    merged = read(tmp_path / "export", auto, num_labels=1)
    with_adapter = with_peft(read(tmp_path / "base", auto, num_labels=1), tmp_path / "export" / "adapter")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        ours, theirs, before = (m(input_ids=ids).logits for m in (merged, with_adapter, base))
    assert difference(ours, theirs) < REORDERED
    assert difference(ours, before) > 100 * SAME


def targets_of(architecture: str, kind: str = "lora", targets: tuple[str, ...] = ()) -> list[str]:
    """Names of what gets an adapter, the layers' numbers apart."""
    adapter = dataclasses.replace(ADAPTERS[kind], target_modules=targets)
    return choose_targets(adapter, tiny_model(architecture, attn_implementation="eager"))


def test_dense_layers_and_shared_experts_get_adapters_and_fused_experts_and_routers_do_not() -> None:
    found = [n for n in targets_of("deepseek_v3") if ".mlp." in n]
    dense = [f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")]
    shared = [f"model.layers.1.mlp.shared_experts.{x}_proj" for x in ("gate", "up", "down")]
    assert found == dense + shared
    assert not any(name.endswith("shared_expert_gate") for name in targets_of("qwen2_moe"))
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {n.rpartition(".")[2] for n in targets_of("phimoe")} == attention
    assert not any(".router" in name for name in targets_of("llama4_text"))


def test_layers_whose_weights_kernels_read_get_no_adapter() -> None:
    mixer = [n for n in targets_of("jamba") if ".mamba." in n]
    assert mixer == ["model.layers.0.mamba.in_proj"]


def test_layers_are_chosen_by_the_ends_of_their_names() -> None:
    assert targets_of("qwen3_moe", targets=("down_proj",)) == ["model.layers.0.mlp.down_proj"]
    assert targets_of("gpt2", targets=("attn.c_proj",)) == [f"transformer.h.{i}.attn.c_proj" for i in range(2)]
    assert targets_of("llama", targets=("layers.1.self_attn.q_proj",)) == ["model.layers.1.self_attn.q_proj"]
    # A router that is a plain linear layer can be asked for.
    assert targets_of("qwen2_moe", targets=("shared_expert_gate",)) == ["model.layers.1.mlp.shared_expert_gate"]


@pytest.mark.parametrize(
    ("architecture", "kind", "target", "message"),
    [
        (
            "mixtral",
            "lora",
            "down_proj",
            "'down_proj' means model.layers.0.mlp.experts.down_proj, which holds all 4 experts of its layer in one "
            "parameter; fused experts get no adapter\n"
            "    set model.adapter.target_modules: [k_proj, o_proj, q_proj, v_proj]",
        ),
        (
            "gpt_oss",
            "lora",
            "experts",
            "'experts' means model.layers.0.mlp.experts.gate_up_proj, which holds all 4 experts of its layer in one "
            "parameter; fused experts get no adapter\n"
            "    set model.adapter.target_modules: [k_proj, o_proj, q_proj, v_proj]",
        ),
        (
            "phimoe",
            "lora",
            "router",
            "model.layers.0.mlp.router (PhimoeTopKRouter) is not a plain linear layer and gets no adapter\n"
            "    set model.adapter.target_modules: [k_proj, o_proj, q_proj, v_proj]",
        ),
        (
            "gpt2",
            "lora",
            "lm_head",
            "lm_head (Linear) is outside of the decoder blocks and gets no adapter\n"
            "    set model.adapter.target_modules: [c_attn, c_fc, c_proj]",
        ),
        (
            "qwen3_moe",
            "dora",
            "up_proj",
            "model.layers.0.mlp.up_proj cannot have a dora adapter, because peft takes 'up_proj' in qwen3_moe models "
            "for the fused experts, which have no DoRA\n"
            "    set model.adapter.name: lora, or target_modules: [k_proj, o_proj, q_proj, v_proj]",
        ),
    ],
)
def test_what_cannot_have_an_adapter_is_refused_by_its_name(
    architecture: str, kind: str, target: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        targets_of(architecture, kind, (target,))
    assert str(caught.value) == f"model.adapter.target_modules: {message}"
