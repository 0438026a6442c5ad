"""The kernel ``liger``; its module is light, because ``rl check`` and ``rl doctor`` load it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from rl_torch.kernels.contract import Applied, Use

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DRIVER_TOOLS = ("nvidia-smi", "rocm-smi")


class LigerKernel:
    """Implements :class:`rl_torch.kernels.contract.Kernel`."""

    name = "liger"

    def here(self) -> str:
        """Where it is of use, and whether it is here."""
        if not any(map(shutil.which, _DRIVER_TOOLS)):
            return "needs a CUDA GPU"
        return "trains on GPUs: RMSNorm, RoPE, SwiGLU and fused linear cross-entropy by Liger"

    def expects(self, use: Use) -> str | None:
        """It trains, on GPUs; elsewhere Triton runs kernels in its interpreter alone, which is for tests."""
        if use.device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return "it needs a CUDA GPU"
        if use.purpose == "decoding":
            return "it is for training"
        return None

    def prepare_process(self, device: str) -> None:
        """Nothing."""

    def fits(self, model: PreTrainedModel, use: Use) -> str | None:
        """Whether Liger has kernels for the family."""
        try:
            from rl_kernels_liger import layers
        except Exception as error:  # noqa: BLE001 - of other packages: Triton without a driver, an older transformers
            return f"liger-kernel cannot be imported: {type(error).__name__}: {error}"
        return layers.why_not(model)

    def apply(self, model: PreTrainedModel, use: Use) -> Applied:
        """See :mod:`rl_kernels_liger.layers` and :mod:`rl_kernels_liger.logprobs`."""
        from rl_kernels_liger import layers
        from rl_kernels_liger.logprobs import target_logprobs

        parts, remove = layers.apply(model, use)
        return Applied((*parts, "fused linear cross-entropy"), remove, target_logprobs=target_logprobs)


KERNEL = LigerKernel()
