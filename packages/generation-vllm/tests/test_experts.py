"""Experts of a mixture under the names that vLLM has for them.

On the CPU a mixture is refused, because vLLM keeps the old experts there in an update: here it is let through, to see
that every name of a folder and of an update is known. Whether an update changes the experts, only a GPU shows.
"""

from __future__ import annotations

from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_generation_vllm import generator as module

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}
EXCLUDED = {3, 5, *range(40, 48)}


def test_a_mixture_samples_as_hugging_faces_and_an_update_leaves_no_expert_out(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "shape_finding", lambda *args, **options: None)
    spec = small.spec("qwen3_moe", extra=EXPERTS | {"head_dim": 32})
    model = small.model(spec)
    model.save_pretrained(tmp_path)
    folder = ModelSpec(path=str(tmp_path), vocab_size=40, never_sampled=(3, 5), max_length=160)
    generator = small.generator(folder, max_num_seqs=16)
    try:
        sampling = SamplingParams(n=8, max_new_tokens=16)
        batch = generator.generate(small.requests(small.prompts([3, 7, 30])), sampling)
        assert small.gap(batch, model) < 1e-4
        assert not {token for completion in small.completions(batch) for token in completion} & EXCLUDED
        generator.update_weights(small.buckets(spec), 1)  # raises for a parameter that gets no value
    finally:
        generator.close()
