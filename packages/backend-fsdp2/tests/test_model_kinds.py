"""What differs between architectures: layouts, randomness in training, and what routers add to a loss."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsdp2_helpers import backend, train
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_core.contracts.model import AdapterSpec, ModelSpec
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_plugin_kit.local_model import LocalModel
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import NLL, POLICY, optimizer_spec, random_batch
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL |= {"initializer_range": 0.3, "init_std": 0.3}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16, "num_key_value_heads": 2}
RANDOM = {
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.3, "activation_dropout": 0.3, "layerdrop": 0.3},
    "seed_oss": {
        "intermediate_size": 32,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "residual_dropout": 0.3,
        "attention_dropout": 0.3,
    },
    "starcoder2": {"intermediate_size": 32, "residual_dropout": 0.3, "embedding_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "mixtral": {**EXPERTS, "router_jitter_noise": 0.3},
    "phimoe": {**EXPERTS, "router_jitter_noise": 0.01, "input_jitter_noise": 0.3},  # and draws experts in training
}
SEQUENCES = [np.random.default_rng(0).integers(3, 50, n).tolist() for n in (5, 12, 3, 20)]


def folder_of(path: Path, architecture: str, **fields: Any) -> Any:
    """A model in ``path``, and as transformers computes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **{**SMALL, **fields})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(path)
    return model


def logprobs(model: Any) -> np.ndarray:
    found: list[float] = []
    for sequence in SEQUENCES:
        ids = torch.tensor(sequence)
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0, :-1], -1)
        found += [0.0, *log_p.gather(1, ids[1:, None])[:, 0].tolist()]
    return np.array(found)


def ours(made: Any) -> np.ndarray:
    return made.forward("policy", SequenceBatch.from_lists(SEQUENCES), ("logprobs",), 1.0)["logprobs"]


@pytest.mark.parametrize("how", ["plain", "adapter", "recomputing"])
@pytest.mark.parametrize("architecture", RANDOM)
def test_no_part_of_a_model_is_random_whatever_its_field_is_called(architecture: str, how: str, tmp_path: Path) -> None:
    expected = logprobs(folder_of(tmp_path / "model", architecture, **RANDOM[architecture]))
    adapter = AdapterSpec(kind="lora", rank=2, alpha=4.0) if how == "adapter" else None
    spec = ModelSpec(path=str(tmp_path / "model"), max_length=64, adapter=adapter)
    options = {"activation_checkpointing": "full"} if how == "recomputing" else {}
    with backend(0, 1, 0, **options) as made:
        made.load(POLICY, spec, optimizer_spec())
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.testing.assert_allclose(ours(made), expected, atol=3e-5)
        made.export("policy", str(tmp_path / "export"))
    exported = AutoConfig.from_pretrained(tmp_path / "export")
    for name, value in RANDOM[architecture].items():
        assert getattr(exported, name) == value, "an export keeps what the folder says"


def test_auto_pads_where_a_model_does_not_keep_packed_sequences_apart(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", "bloom", n_layer=2, n_head=4)
    spec = ModelSpec(path=str(tmp_path / "model"), max_length=64)
    with backend(0, 1, 0) as made:
        made.load(POLICY, spec, optimizer_spec())
        np.testing.assert_allclose(ours(made), logprobs(model), atol=3e-5)
    with backend(0, 1, 0, packing="packed") as made, pytest.raises(EnvironmentProblem) as caught:
        made.load(POLICY, spec, optimizer_spec())
    assert str(caught.value) == (
        "BloomForCausalLM does not keep sequences in one row apart\n    remove backend.packing, or set it to padded"
    )


SLIDING = {"num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"], "sliding_window": 4}
ATTENTION = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32}
FEW_LAYERS = {
    # A model for images too, whose own config has no layers.
    "gemma3": {"text_config": {**SMALL, **SLIDING, **ATTENTION}, "vision_config": {**SMALL, "image_size": 14}},
    # The config differs between layers.
    "gemma4_text": {
        **ATTENTION,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 4,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": 50,
        "hidden_size_per_layer_input": 4,
        "num_kv_shared_layers": 2,
    },
    # Says of each layer what it is, and the first two are of one kind.
    "qwen3_next": {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention"] * 2 + ["full_attention"],
        **ATTENTION,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}


@pytest.mark.parametrize("architecture", FEW_LAYERS)
def test_a_model_that_is_read_in_parts_computes_what_it_does_as_a_whole(architecture: str, tmp_path: Path) -> None:
    model = folder_of(tmp_path / "model", architecture, **FEW_LAYERS[architecture])
    with backend(0, 1, free_port(), cpu_offload=True) as made:
        made.load(POLICY, ModelSpec(path=str(tmp_path / "model"), max_length=64), optimizer_spec())
        np.testing.assert_allclose(ours(made), logprobs(model), atol=3e-5)


ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "num_key_value_heads": 4,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "intermediate_size": 32,
    "mamba_d_state": 4,
}


def test_layers_that_share_a_weight_get_no_adapter(tmp_path: Path) -> None:
    folder_of(tmp_path / "model", "zamba", **ZAMBA)
    lora = AdapterSpec("lora", rank=2, alpha=4.0)
    spec = ModelSpec(path=str(tmp_path / "model"), max_length=64, adapter=lora)
    with backend(0, 1, 0) as made:
        made.load(POLICY, spec, optimizer_spec())
        count = sum(map(len, SEQUENCES))
        scale = Scale(tokens=count, sequences=len(SEQUENCES), units=len(SEQUENCES))
        columns = {"loss_mask": [np.ones(len(s), np.float32) for s in SEQUENCES]}
        made.train("policy", SequenceBatch.from_lists(SEQUENCES, token_columns=columns), NLL, scale)
        trained = ours(made)
        made.export("policy", str(tmp_path / "export"))
        asked = dataclasses.replace(spec, adapter=dataclasses.replace(lora, target_modules=("q_proj",)))
        with pytest.raises(ConfigError, match=r"q_proj cannot have an adapter, because other layers have the same wei"):
            made.load(POLICY, asked, optimizer_spec())
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", attn_implementation="eager")
    np.testing.assert_allclose(logprobs(exported), trained, atol=3e-5)


def test_layers_that_share_a_weight_are_not_sharded(tmp_path: Path) -> None:
    folder_of(tmp_path / "model", "zamba", **ZAMBA)
    with (
        backend(0, 1, free_port(), cpu_offload=True) as made,
        pytest.raises(
            EnvironmentProblem, match=r"has one weight shared_transf.* for layers 1 and 3, which FSDP cannot"
        ),
    ):
        made.load(POLICY, ModelSpec(path=str(tmp_path / "model"), max_length=64), optimizer_spec())


@pytest.mark.parametrize(
    ("architecture", "options"), [("gemma2", {}), ("gpt_oss", {}), ("gemma2", {"packing": "packed"})]
)
def test_variable_length_attention_caps_its_scores_and_has_sinks(
    architecture: str, options: dict[str, str], tmp_path: Path
) -> None:
    fields = {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}
    model = folder_of(
        tmp_path / "model",
        architecture,
        head_dim=8,
        num_key_value_heads=2,
        intermediate_size=32,
        sliding_window=4,
        num_local_experts=4,
        **(fields if architecture == "gemma2" else {}),
    )
    spec = ModelSpec(path=str(tmp_path / "model"), max_length=64)
    with backend(0, 1, 0, **{"attention": "varlen", **options}) as made:
        made.load(POLICY, spec, optimizer_spec())
        np.testing.assert_allclose(ours(made), logprobs(model), atol=3e-5)


def test_a_models_routers_are_kept_balanced_where_its_config_asks_for_it(tmp_path: Path) -> None:
    """The step's gradient is that of transformers' loss with its auxiliary part, the mean over micro-batches."""
    fields = {**EXPERTS, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    model = folder_of(tmp_path / "model", "mixtral", **fields)
    batch = SequenceBatch.from_lists(SEQUENCES, token_columns={"loss_mask": [np.ones(len(s)) for s in SEQUENCES]})
    count = len(batch.tokens)
    scale = Scale(tokens=count, sequences=len(batch), units=len(batch))
    spec = ModelSpec(path=str(tmp_path / "model"), max_length=64)
    with backend(0, 1, 0, max_tokens_per_microbatch=1) as made:  # every sequence is one
        made.load(POLICY, spec, optimizer_spec(max_grad_norm=None))
        result = made.train("policy", batch, NLL, scale)
    balance = 0.0
    for sequence in SEQUENCES:
        ids = torch.tensor(sequence)
        out = model(input_ids=ids[None], use_cache=False, output_router_logits=True)
        log_p = torch.log_softmax(out.logits[0, :-1], -1).gather(1, ids[1:, None])
        (-log_p.sum() / count + 0.5 * out.aux_loss / len(SEQUENCES)).backward()
        balance += float(out.aux_loss.detach()) / len(SEQUENCES)
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    assert result.partial["router_aux_loss"] == pytest.approx(balance, rel=1e-5)
    assert result.shared["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("balanced", [True, False])
def test_what_the_loss_leaves_out_still_balances_the_routers(tmp_path: Path, balanced: bool) -> None:
    """Two sequences are masked; ``train`` may skip them only where the model adds no loss of its own."""
    fields = {**EXPERTS, "output_router_logits": balanced, "router_aux_loss_coef": 0.5}
    folder_of(tmp_path / "model", "mixtral", **fields)
    masks = [np.full(len(s), float(index > 1), np.float32) for index, s in enumerate(SEQUENCES)]
    batch = SequenceBatch.from_lists(SEQUENCES, token_columns={"loss_mask": masks})
    spec, found = ModelSpec(path=str(tmp_path / "model"), max_length=64), []
    with backend(0, 1, 0) as made:
        for zero_where in (None, "loss_mask"):
            policy = LocalModel(made, POLICY, spec, optimizer_spec())
            assert policy.info.auxiliary_loss == balanced
            found.append(policy.train(batch, dataclasses.replace(NLL, zero_where=zero_where)))
    whole, skipping = found
    assert skipping.pop("skipped_sequences_fraction") == (0.0 if balanced else 0.5)
    assert skipping == pytest.approx(whole, rel=1e-5)


def test_balancing_over_parts_of_sequences_is_refused(pair: Any, tmp_path: Path) -> None:
    folder_of(tmp_path / "model", "mixtral", **EXPERTS, output_router_logits=True)
    spec = ModelSpec(path=str(tmp_path / "model"), max_length=64)
    with pytest.raises(AssertionError, match="or output_router_logits to false"):
        pair(train, batch=random_batch(), spec=spec, config={"parallel": {"cp": 2}})
