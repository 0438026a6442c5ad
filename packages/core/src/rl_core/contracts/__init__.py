"""Contracts of all kinds of components: one Protocol per module, with the values that it exchanges.

Nothing here imports torch. Arrays are numpy, ragged and unpadded (see
:class:`rl_core.batch.SequenceBatch`).
"""
