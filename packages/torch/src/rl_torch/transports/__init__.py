"""The ends of weight transports for PyTorch components; see :mod:`rl_core.contracts.transport`.

A backend offers them by having ``named_weights(role)`` (:class:`rl_torch.transports.buckets.NamedWeights`) and naming
them in its config, a generator by reading buckets with :func:`rl_torch.weights.from_buckets` and naming them in its::

    weight_transports = {"collective": "rl_torch.transports.collective:Sender"}
"""
