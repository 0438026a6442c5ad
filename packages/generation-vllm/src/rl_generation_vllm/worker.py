"""Extension of vLLM's workers: the sampling temperature, and loading weights in place.

vLLM mixes the class into its own worker class and calls the methods by name in every process of
an engine, so they start with ``rl_`` and take plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rl_core.contracts.backend import WeightBucket
from rl_torch.weights import from_buckets
from torch import Tensor
from transformers import PretrainedConfig
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rl_generation_vllm.environment import quiet
from rl_generation_vllm.parameters import as_published


class WorkerExtension:
    """Methods for ``collective_rpc``."""

    model_runner: Any
    model_config: Any
    vllm_config: Any

    def rl_scale_logits(self, temperature: float) -> None:
        """Divide all logits by ``temperature`` from now on, before vLLM sees them.

        vLLM reports log-probabilities either before the temperature or after top-k and top-p. With
        scaled logits and its own temperature at 1, those before are at the sampling temperature
        over the full vocabulary, with every sampler it has.
        """
        model = self.model_runner.get_model()
        scale = getattr(model, "rl_logit_scale", None)
        if scale is None:
            scale = model.rl_logit_scale = _LogitScale(model.compute_logits)
            model.compute_logits = scale
        scale.temperature = temperature

    def rl_load_weights(
        self,
        buckets: list[WeightBucket],
        renamed: dict[str, str | None],
        published_as: PretrainedConfig | None = None,
    ) -> list[str]:
        """Replace all weights, layer by layer, in the storage and the kernel format they have.

        Args:
            buckets: every parameter once, except those ``renamed`` to None.
            renamed: names that vLLM knows under another name, or (None) must not be given.
            published_as: see :class:`rl_generation_vllm.parameters.ModelParameters`.

        Returns:
            parameters of the model that got no value; empty when all is well.
        """
        quiet()  # several processes per engine come through here, too
        model = self.model_runner.get_model()
        names = {name for name, _ in model.named_parameters()}
        tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - names
        given = ((renamed.get(name, name), tensor) for name, tensor in from_buckets(buckets))
        weights: Iterator[tuple[str, Tensor]] = ((name, tensor) for name, tensor in given if name is not None)
        if published_as is not None:
            weights = as_published(published_as, weights)
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            loaded = model.load_weights(weights)
            finalize_layerwise_reload(model, self.model_config)
            for name in tied:
                # It got its values with the first name, but on the CPU it also keeps a packed copy.
                layer = model.get_submodule(name.rpartition(".")[0])
                layer.quant_method.process_weights_after_loading(layer)
        return [] if loaded is None else sorted(names - set(loaded))

    def rl_clear_cache(self) -> None:
        """Zero the key/value cache: attention multiplies what it masks by 0, and 0 × NaN is NaN."""
        for tensor in _tensors(self.model_runner.kv_caches):
            tensor.zero_()


def _tensors(nested: Any) -> Iterator[Tensor]:
    """Layers with a state in several parts keep a list of tensors."""
    if isinstance(nested, Tensor):
        yield nested
    else:
        for part in nested:
            yield from _tensors(part)


class _LogitScale:
    """``model.compute_logits``, divided by the temperature."""

    def __init__(self, compute_logits: Any) -> None:
        self._compute_logits = compute_logits
        self.temperature = 1.0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        logits = self._compute_logits(*args, **kwargs)
        # Only one of several tensor-parallel processes has logits.
        if logits is None or self.temperature == 1.0:
            return logits
        return logits.float() / self.temperature
