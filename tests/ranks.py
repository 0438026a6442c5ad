"""Ranks in processes of their own, forked from one that has imported what most tests need."""

from __future__ import annotations

import multiprocessing

from rl_torch.engine.testing.ranks import Ranks, in_this_process

__all__ = ["Ranks", "in_this_process"]

IMPORTS = [
    "rl_backend_fsdp2.backend",
    "rl_backend_megatron.backend",
    "rl_core.training.pipeline",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
]
"""For all that is forked from the one server of a test process: commands and the probes of memory too."""

multiprocessing.set_forkserver_preload(IMPORTS)
