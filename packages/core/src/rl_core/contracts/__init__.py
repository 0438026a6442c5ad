"""What each kind of component is: one Protocol a module, with the values that cross it.

Nothing here imports torch. Arrays are numpy, ragged and unpadded (see
:class:`rl_core.batch.SequenceBatch`).
"""
