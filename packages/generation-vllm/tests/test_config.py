"""What `rl check` finds about the section, before anything starts."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from rl_core.config.run_section import RunSection
from rl_core.config.sections import InitConfig, ModelConfig
from rl_generation_vllm.config import VllmConfig
from rl_generation_vllm.shapes import CPU_HEAD_SIZES
from rl_plugin_kit.conformance import PluginConformance


class TestConformance(PluginConformance):
    package = "rl-generation-vllm"


def problems(gpus=0, heads=2, extra=None, path=None, max_length=100, **options) -> list[str]:
    init = InitConfig(architecture="qwen2", hidden_size=64, layers=2, heads=heads, kv_heads=1, extra=extra or {})
    model = ModelConfig(path=path, max_length=max_length) if path else ModelConfig(init=init, max_length=max_length)
    stage = SimpleNamespace(model=model, run=RunSection(steps=1, gpus=gpus))
    return [str(p) for p in VllmConfig(name="vllm", **options).problems(stage)]


def test_plugin_and_config_import_nothing_heavy():
    code = (
        "import sys, rl_generation_vllm.plugin as p, rl_generation_vllm.config; p.register_generators();"
        "print({'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_head_sizes_are_those_of_vllms_cpu_kernels():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def test_a_usual_section_has_no_problems():
    assert problems() == []
    assert problems(gpus=1, gpu_memory_utilization=0.5, enforce_eager=True) == []


@pytest.mark.parametrize(("heads", "extra", "size"), [(4, {}, 16), (2, {"head_dim": 40}, 40)])
def test_heads_without_a_cpu_kernel_are_found_before_the_run(heads, extra, size):
    assert problems(heads=heads, extra=extra) == [
        f"name: vLLM on the CPU has no attention for heads of size {size}; "
        "it has 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512\n"
        "    change the number of heads (their size is hidden_size / heads, or head_dim), "
        "or use generator: {name: hf}"
    ]
    assert problems(heads=heads, extra=extra, gpus=1) == []


def test_mixtures_of_experts_are_refused_on_the_cpu():
    assert problems(extra={"num_experts": 4}) == [
        "name: vLLM on the CPU keeps the old weights of a mixture's experts (4 per layer) in an update\n"
        "    use a model without experts, or generator: {name: hf}"
    ]
    assert problems(extra={"num_experts": 4}, gpus=1) == []


def test_the_heads_of_a_folder_that_is_there_are_looked_at(tmp_path):
    assert problems(path=str(tmp_path)) == []
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2, "head_dim": null}'
    )
    (found,) = problems(path=str(tmp_path))
    assert found.startswith("name: vLLM on the CPU has no attention for heads of size 8;")


def test_a_cache_that_cannot_hold_one_sequence_is_found_before_the_run():
    # 2 (keys, values) × 2 layers × 1 head × 32 × 4 bytes × 160 tokens (four blocks hold 100, and one is vLLM's).
    assert problems(kv_cache_bytes=81919) == [
        "kv_cache_bytes: 81919 bytes do not hold one sequence of model.max_length 100 (81920 bytes)\n"
        "    set kv_cache_bytes to at least 81920, or lower model.max_length"
    ]
    assert problems(kv_cache_bytes=81920) == []


def test_options_without_effect_are_refused():
    assert problems(gpu_memory_utilization=0.5) == [
        "gpu_memory_utilization: has no effect on the CPU (run.gpus is 0)\n"
        "    remove it; generator.kv_cache_bytes limits the memory there"
    ]
    assert problems(gpus=1, gpu_memory_utilization=0.5, kv_cache_bytes=2**30) == [
        "gpu_memory_utilization: has no effect together with kv_cache_bytes, which fixes the size of the cache\n"
        "    remove one of the two"
    ]


def test_a_division_that_is_impossible_is_refused():
    assert problems(gpus=2, tensor_parallel=2) == [
        "tensor_parallel: an engine is given one GPU, and tensor_parallel 2 needs 2\n"
        "    set tensor_parallel: 1 and use replicas for more GPUs"
    ]
    assert problems(tensor_parallel=3) == [
        "name: 2 attention heads cannot be split evenly over generator.tensor_parallel 3\n"
        "    set generator.tensor_parallel to a divisor of 2"
    ]


def test_completions_cannot_begin_anew_with_new_weights():
    assert problems(partial_rollouts="restart") == [
        "partial_rollouts: 'restart' is not possible here: an engine takes new weights when a batch is done\n"
        "    remove it, or use generator: {name: hf}"
    ]
