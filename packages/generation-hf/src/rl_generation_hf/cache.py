"""A preallocated key/value cache with one slot per running completion.

Row ``r`` of a layer's tensors [slots, heads, columns, head size] holds one completion, left-aligned:
token ``t`` is in column ``t``. Running completions fill the first slots without gaps, so a
decoding step works on views and never on finished rows; a slot that empties is filled by moving
one other row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotCache(Cache):
    """The cache a model is called with. Call one of :meth:`start_prefill` and :meth:`start_step` before each forward.

    Attributes:
        slots: rows there is room for.
        columns: longest row there is room for, in tokens.
        slot_layers: what ``layers`` holds.
    """

    def __init__(self, layers: int) -> None:
        self.slots = 0
        self.columns = 0
        self.prefilling = False
        self.first = 0
        self.source = torch.zeros(0, dtype=torch.int64)
        self.rows: Tensor | slice = slice(0)
        self.positions: Tensor | slice = slice(0)
        self.seen = 0
        self.count = 0
        self.slot_layers = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=[*self.slot_layers])

    def resize(self, *, slots: int, columns: int, keep_rows: int, keep_columns: int) -> None:
        """Change the shape; the first ``keep_rows`` rows keep their first ``keep_columns`` columns."""
        self.slots, self.columns = slots, columns
        for layer in self.slot_layers:
            layer.resize(keep_rows=keep_rows, keep_columns=keep_columns)

    def release(self) -> None:
        """Give the memory back; the next :meth:`resize` allocates again."""
        self.slots = self.columns = 0
        for layer in self.slot_layers:
            layer.release()

    def start_prefill(self, *, source: Tensor, first: int) -> None:
        """The next forward reads prompts; slot ``first + i`` receives keys and values of its row ``source[i]``."""
        self.prefilling, self.source, self.first = True, source, first

    def start_step(self, *, positions: Tensor, longest: int, equal: bool) -> None:
        """The next forward adds one token to each of the first ``len(positions)`` slots.

        Args:
            positions: int64 [R], the column of each new token.
            longest: ``max(positions)``.
            equal: whether all positions are the same (then a slice is written, which is faster).
        """
        self.prefilling, self.count, self.seen = False, len(positions), longest + 1
        if equal:
            self.rows, self.positions = slice(0, self.count), slice(longest, longest + 1)
        else:
            self.rows, self.positions = torch.arange(self.count, device=positions.device), positions

    def clear(self, rows: Tensor) -> None:
        """Write zeros over all of ``rows`` (int64): 0 × NaN behind another row's end would still be NaN."""
        for layer in self.slot_layers:
            if layer.is_initialized:
                for stored in layer.stored():
                    stored[rows] = 0

    def move(self, *, source: Tensor, target: Tensor, columns: int) -> None:
        """Copy the first ``columns`` columns of rows ``source`` over rows ``target`` (disjoint, int64)."""
        for layer in self.slot_layers:
            if not layer.is_initialized:  # it reads the keys of another one
                continue
            for stored in layer.stored():
                stored[target, :, :columns] = stored[source, :, :columns]


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer; which rows and columns a forward touches is the cache's to say."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the head count, head size, dtype and device of the first states seen."""
        self.keys, self.values = self._zeros(key_states), self._zeros(value_states)
        self.is_initialized = True

    def stored(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots; only once it is initialized."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def resize(self, *, keep_rows: int, keep_columns: int) -> None:
        if not self.is_initialized or self._shape(self.stored()[0]) == self.stored()[0].shape:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._zeros(old)
            new[:keep_rows, :, :keep_columns] = old[:keep_rows, :, :keep_columns]
            setattr(self, name, new)

    def release(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new states; returns the states that attention reads."""
        cache = self._cache
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.stored()
        if cache.prefilling:
            rows = slice(cache.first, cache.first + len(cache.source))
            keys[rows, :, : key_states.shape[2]] = key_states[cache.source]
            values[rows, :, : value_states.shape[2]] = value_states[cache.source]
            return key_states, value_states
        if isinstance(cache.positions, slice):
            keys[cache.rows, :, cache.positions] = key_states
            values[cache.rows, :, cache.positions] = value_states
        else:
            keys[cache.rows, :, cache.positions] = key_states[:, :, 0]
            values[cache.rows, :, cache.positions] = value_states[:, :, 0]
        return keys[: cache.count, :, : cache.seen], values[: cache.count, :, : cache.seen]

    def get_seq_length(self) -> int:
        return 0 if self._cache.prefilling else self._cache.seen - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self._cache.prefilling else self._cache.seen), 0

    def get_max_length(self) -> int:
        return self._cache.columns

    def _shape(self, like: Tensor) -> torch.Size:
        return torch.Size((self._cache.slots, like.shape[1], self._cache.columns, like.shape[3]))

    def _zeros(self, like: Tensor) -> Tensor:
        # Not empty: columns after a row's end are masked, but 0 × NaN would still be NaN.
        return torch.zeros(self._shape(like), dtype=like.dtype, device=like.device)
