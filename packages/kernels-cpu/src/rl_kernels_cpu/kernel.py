"""The kernel ``cpu``; its module is light, because ``rl check`` and ``rl doctor`` load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_torch.kernels.contract import Applied, Use

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CpuKernel:
    """Implements :class:`rl_torch.kernels.contract.Kernel`."""

    name = "cpu"

    def here(self) -> str:
        """Where it is of use."""
        return "trains and generates on the CPU: rows without padding, layers of Llama, Mistral, Qwen2 and Qwen3"

    def expects(self, use: Use) -> str | None:
        """It computes on the CPU, and training needs rows of its own."""
        if use.device != "cpu":
            return "it computes on the CPU"
        if use.layout_fixed_by and use.purpose != "decoding":
            return f"it needs rows of its own, not those of {use.layout_fixed_by}"
        return None

    def prepare_process(self, device: str) -> None:
        """See :mod:`rl_kernels_cpu.host_memory`."""
        from rl_kernels_cpu.host_memory import keep_few_products, keep_freed_memory

        if device == "cpu":
            keep_freed_memory()
            keep_few_products()

    def fits(self, model: PreTrainedModel, use: Use) -> str | None:
        """Whether its layers are known, or their attention can be chosen."""
        from rl_kernels_cpu import decoding, training

        return decoding.why_not(model) if use.purpose == "decoding" else training.why_not(model)

    def apply(self, model: PreTrainedModel, use: Use) -> Applied:
        """See :func:`rl_kernels_cpu.training.apply` and :func:`rl_kernels_cpu.decoding.apply`."""
        from rl_kernels_cpu import decoding, training

        return decoding.apply(model) if use.purpose == "decoding" else training.apply(model, use)


KERNEL = CpuKernel()
