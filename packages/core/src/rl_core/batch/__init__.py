"""The one data type between all parts, and how its sequences are cut and packed.

============= ========================================================================
``sequences`` :class:`SequenceBatch`: ragged sequences with named columns
``ragged``    arithmetic on rows of different lengths
``units``     sequences that are never split over micro-batches or ranks
``packing``   distributing lengths over bins
============= ========================================================================
"""

from rl_core.batch.sequences import UNIT, SequenceBatch

__all__ = ["UNIT", "SequenceBatch"]
