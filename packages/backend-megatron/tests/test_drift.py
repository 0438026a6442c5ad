"""Internals of Megatron Core that this package patches, overrides or reads: a new version must still have them.

Each test names the module that depends on it. When one fails after an upgrade, look there first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensorFactory,
    apply_factories,
    is_main_replica,
)
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, Float16OptimizerWithFloat16Params, MegatronOptimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import Attention
from megatron.core.transformer.moe import moe_utils, token_dispatcher
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint


def arguments(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_this_was_written_for() -> None:
    assert version("megatron-core") == "0.16.1"


def test_model_relies_on_the_hook_after_the_last_layer() -> None:
    assert arguments(GPTModel._postprocess)[:2] == ["self", "hidden_states"]
    assert "return self._postprocess(" in inspect.getsource(GPTModel.forward)
    assert "hidden_states=hidden_states," in inspect.getsource(GPTModel.forward)
    assert "share_embeddings_and_output_weights" in arguments(GPTModel.__init__)
    call = "decoder_input = self.embedding(input_ids=input_ids, position_ids=position_ids)"
    assert call in inspect.getsource(GPTModel._preprocess)
    assert "self.rotary_pos_emb = RotaryEmbedding(" in inspect.getsource(GPTModel.__init__)


def test_modules_relies_on_how_angles_are_made() -> None:
    assert arguments(RotaryEmbedding.get_emb) == ["self", "max_seq_len", "offset"]
    assert "emb = self.get_emb(max_seq_len, offset)" in inspect.getsource(RotaryEmbedding.forward.__wrapped__)
    assert "torch.outer(seq, self.inv_freq)" in inspect.getsource(RotaryEmbedding.get_freqs_non_repeated)
    assert {"layer_specs", "layer_norm"} <= set(TransformerBlockSubmodules.__dataclass_fields__)


def test_architecture_relies_on_sums_not_being_divided() -> None:
    source = inspect.getsource(schedules.forward_step_calc_loss)
    assert "if len(outputs) == 3:" in source
    assert "if not config.calculate_per_token_loss:" in source
    assert "if config.calculate_per_token_loss:" in inspect.getsource(DistributedDataParallel.__init__)
    assert arguments(finalize_model_grads)[:2] == ["model", "num_tokens"]
    assert "if num_tokens is not None:" in inspect.getsource(finalize_model_grads)


def test_optimizer_relies_on_the_three_parts_of_a_step() -> None:
    for name in ("prepare_grads", "get_grad_norm", "step_with_ready_grads", "zero_grad"):
        assert arguments(getattr(ChainedOptimizer, name))[0] == "self"
    assert arguments(MegatronOptimizer.get_parameters) == ["self"]
    assert arguments(DistributedDataParallel.zero_grad_buffer) == ["self"]


def test_optimizer_relies_on_what_is_marked_as_not_decayed() -> None:
    ((key, override),) = get_standard_config_overrides(OptimizerConfig(optimizer="adam")).items()
    assert override == {"wd_mult": 0.0}
    vector, matrix = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3, 3))
    assert (key.matches(vector, "norm.weight"), key.matches(matrix, "linear.weight")) == (True, False)


def test_optimizer_state_relies_on_where_shards_lie() -> None:
    assert arguments(DistributedOptimizer._get_model_param_range_map) == ["self", "param"]
    source = inspect.getsource(DistributedOptimizer)
    assert "group_index, group_order = self.model_param_group_index_map[model_param]" in source
    assert 'param_range_map["param"].start : param_range_map["param"].end' in source
    assert "param.main_param = main_param" in inspect.getsource(Float16OptimizerWithFloat16Params.__init__)
    assert {"key", "data", "dtype"} <= set(ShardedTensor.__dataclass_fields__)
    assert {"key", "data"} <= set(ShardedTensorFactory.__dataclass_fields__)


def test_checkpoints_rely_on_what_describes_a_part_of_a_tensor() -> None:
    described = {"key", "data", "global_shape", "global_offset", "replica_id", "allow_shape_mismatch"}
    assert described <= set(ShardedTensor.__dataclass_fields__)
    assert [is_main_replica(replica) for replica in (0, (0, 0), (0, 1))] == [True, True, False]
    assert arguments(apply_factories) == ["sharded_state_dict"]
    assert {"merge_fn"} <= set(ShardedTensorFactory.__dataclass_fields__)


def test_lora_relies_on_the_parallel_layers() -> None:
    for layer in (ColumnParallelLinear, RowParallelLinear):
        source = inspect.getsource(layer)
        assert "self.sequence_parallel = config.sequence_parallel" in source
        assert "self.tp_group = " in source
    assert arguments(make_sharded_tensors_for_checkpoint)[:4] == [
        "state_dict",
        "prefix",
        "tensor_parallel_layers_axis_map",
        "sharded_offsets",
    ]
    source = inspect.getsource(inspect.getmodule(finalize_model_grads))
    assert 'config.sequence_parallel and getattr(param, "sequence_parallel", False)' in source
    assert 'config.qk_layernorm and ("q_layernorm" in name or "k_layernorm" in name)' in source


def test_microbatches_relies_on_packed_rows_losing_their_batch_dimension() -> None:
    source = inspect.getsource(Attention.forward)
    assert "if packed_seq_params is not None and packed_seq_params.qkv_format == 'thd':" in source
    assert "query = query.squeeze(1)" in source
    assert {"qkv_format", "cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q", "max_seqlen_kv"} <= set(
        PackedSeqParams.__dataclass_fields__
    )


def test_modules_relies_on_a_name_that_only_transformer_engine_defines() -> None:
    source = inspect.getsource(moe_utils.RouterGatingLinearFunction)
    assert source.count("if te_general_gemm is not None and") == 2
    assert "num_experts" in arguments(get_gpt_layer_local_spec)


def test_cpu_relies_on_how_tokens_go_to_their_experts() -> None:
    source = inspect.getsource(token_dispatcher.MoEAlltoAllTokenDispatcher)
    assert "self.cuda_dtoh_stream.wait_stream(torch.cuda.current_stream())" in source
    assert "with torch.cuda.stream(self.cuda_dtoh_stream):" in source
    assert "self.d2h_event = self.cuda_dtoh_stream.record_event()" in source
    exchange = inspect.getsource(tensor_parallel.mappings._AllToAll.forward)
    assert "torch.distributed.all_to_all_single(" in exchange
    assert "device=torch.cuda.current_device()" in exchange


def test_optimizer_state_relies_on_how_experts_are_marked() -> None:
    for layer in (ColumnParallelLinear, RowParallelLinear):
        assert 'setattr(self.weight, "allreduce", not (self.is_expert and self.expert_parallel))' in inspect.getsource(
            layer
        )
    source = inspect.getsource(get_megatron_optimizer)
    dense, experts = "lambda g: not g['is_expert_parallel']", "lambda g: g['is_expert_parallel']"
    assert source.index(dense) < source.index(experts)


def test_cpu_replaces_functions_that_exist() -> None:
    assert callable(megatron_random._get_cuda_rng_state)
    assert callable(megatron_random._set_cuda_rng_state)
    assert callable(torch.cuda.current_device)
    assert callable(torch.cuda.synchronize)


def test_runtime_relies_on_the_order_of_ranks() -> None:
    order = inspect.signature(parallel_state.initialize_model_parallel).parameters["order"].default
    assert order == "tp-cp-ep-dp-pp"
