"""Writing a role as a Hugging Face folder, in files of bounded size."""

from __future__ import annotations

from pathlib import Path

from rl_torch.hf_folder import MAX_FILE_BYTES, write_config, write_safetensors
from rl_torch.published import published

from rl_backend_megatron.runtime import Runtime
from rl_backend_megatron.step import LoadedModel
from rl_backend_megatron.weights import skeleton


def export(loaded: LoadedModel, directory: Path, runtime: Runtime, *, file_bytes: int = MAX_FILE_BYTES) -> None:
    """Rank 0 writes ``config.json`` and safetensors, LoRA merged in; every rank takes part."""
    streamed = loaded.weights.stream(loaded.stage, merged=loaded.base_of is None)
    if runtime.rank == 0:
        model = skeleton(loaded.weights.architecture.config, loaded.stage.head)
        write_safetensors(directory, published(model, streamed, loaded.weights.shapes), max_bytes=file_bytes)
        write_config(directory, model, dtype=loaded.stage.config.params_dtype)
    else:
        for _ in streamed:  # gathering needs every rank
            continue
    runtime.barrier()
