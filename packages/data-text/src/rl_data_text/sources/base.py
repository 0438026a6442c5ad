"""The pipeline all text sources share: raw records → hold-out → mapping → checks → rows.

A source only has to say which raw records it has (:meth:`TextSource.records`) and how to digest
them; everything the user can configure about rows is here, once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from rl_core.contracts.data import Row
from rl_core.errors import DataError

from rl_data_text.config import TextSourceConfig
from rl_data_text.sources.checks import check_row
from rl_data_text.sources.columns import CANONICAL, BadRow, compile_mapping, kind_of
from rl_data_text.sources.conversations import chat_columns, plain_messages, without_nulls
from rl_data_text.sources.preference import normalize_label, normalize_pair

logger = logging.getLogger(__name__)

WHERE = "__where__"
_SHOWN_SKIPS = 3
_PAIR = ("prompt", "messages", "chosen", "rejected")
_LATER = ("tools", "chat_template_kwargs")
_KTO = ("prompt", "completion", "label")


@dataclass(frozen=True)
class Record:
    """A raw record before mapping.

    Attributes:
        where: ``file:line`` or the like.
        value: the parsed record; None when ``error`` is set.
        error: why it could not even be parsed.
    """

    where: str
    value: Any = None
    error: str = ""


class TextSource(ABC):
    """Implements :class:`rl_core.contracts.data.DataSource` on top of :meth:`records`."""

    fills_with_nulls: ClassVar[bool] = False
    """Whether all rows have one schema, so that an object's key may be null only because another row has it (Arrow)."""

    def __init__(self, config: TextSourceConfig) -> None:
        self.config = config
        self._report: dict[str, int] = {"rows": 0, "skipped": 0}
        self._mapping = {
            key: compile_mapping(key, spec) for key in CANONICAL if (spec := getattr(config, key)) is not None
        }
        self._answer_pattern = re.compile(config.answer_pattern) if config.answer_pattern else None

    @abstractmethod
    def records(self) -> Iterable[Record]:
        """All raw records in their fixed order, bad ones included."""

    @abstractmethod
    def content_digest(self) -> str:
        """A digest of the raw content."""

    @abstractmethod
    def describe(self) -> str:
        """What the source reads, for messages."""

    def load(self) -> Sequence[Row]:
        """Read, map and check all rows; see :class:`rl_core.contracts.data.DataSource`."""
        rows: list[Row] = []
        skipped: list[str] = []
        for record in self._selected():
            if self.config.limit is not None and len(rows) >= self.config.limit:
                break
            try:
                rows.append(self._row(record))
            except BadRow as error:
                if self.config.on_bad_row == "error":
                    raise DataError(
                        f"{record.where}: {error}\n    fix the row, or set on_bad_row: skip to leave such rows out"
                    ) from None
                skipped.append(f"{record.where}: {error}")
        self._report = {"rows": len(rows), "skipped": len(skipped)}
        if skipped:
            self._warn(skipped, len(rows))
        if not rows:
            raise DataError(self._no_rows(skipped))
        return rows

    def fingerprint(self) -> str:
        """SHA-256 over the content and the fields that change which rows come out."""
        fields = self.config.model_dump(mode="json", exclude=set(self.config.location_fields))
        # Columns that came later do not change the fingerprints of runs without them.
        fields = {key: value for key, value in fields.items() if value is not None or key not in _LATER}
        text = json.dumps([self.content_digest(), fields], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def report(self) -> Mapping[str, int]:
        """``rows`` and ``skipped`` of the last :meth:`load`."""
        return dict(self._report)

    def _selected(self) -> Iterable[Record]:
        """The records of this split: positions are those in the raw data, so train and hold-out cannot overlap."""
        config = self.config
        if not config.holdout:
            for index, record in enumerate(self.records()):
                if index >= config.skip_first:
                    yield record
            return
        records = list(self.records())[config.skip_first :]
        if config.holdout >= len(records):
            raise DataError(
                f"{self.describe()}: holdout: {config.holdout} leaves nothing to train on, there are only "
                f"{len(records)} rows\n    lower holdout"
            )
        held = holdout_mask(len(records), config.holdout)
        yield from (r for r, is_held in zip(records, held, strict=True) if is_held == (config.split == "holdout"))

    def _row(self, record: Record) -> Row:
        if record.error:
            raise BadRow(record.error)
        raw = record.value
        if not isinstance(raw, Mapping):
            raise BadRow(f"a row must be an object with named columns, this is {kind_of(raw)}")
        row = dict(raw)
        self._map(row, raw, _PAIR)
        self._tidy(row, _PAIR)
        changed = normalize_pair(row, self.config.format)
        row |= changed
        others = [key for key in CANONICAL if key not in _PAIR]
        self._map(row, self._with_changes(raw, changed), others)
        self._tidy(row, others)
        if self._has_label(raw):
            row["label"] = normalize_label(row["label"])
        if self._answer_pattern is not None:
            row["answer"] = self._extract_answer(row)
        for key in self._without_value(row):
            del row[key]
        check_row(row)
        row |= chat_columns(row)
        if self.config.system is not None:
            _prepend_system(row, self.config.system)
        row[WHERE] = record.where
        return row

    def _map(self, row: dict[str, Any], source: Mapping[str, Any], keys: Iterable[str]) -> None:
        for key in keys:
            if key in self._mapping:
                row[key] = self._mapping[key](source)

    def _tidy(self, row: dict[str, Any], keys: Iterable[str]) -> None:
        """Messages in the form with roles, and no keys that only Arrow's schema put there."""
        for key in keys:
            if isinstance(row.get(key), list | tuple | Mapping):
                row[key] = plain_messages(without_nulls(row[key]) if self.fills_with_nulls else row[key])

    def _with_changes(self, raw: Mapping[str, Any], changed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The raw row with the changed columns of a pair: ``completion: chosen`` is the answer alone."""
        if not changed:
            return raw
        names = {getattr(self.config, key): value for key, value in changed.items()}
        return {**raw, **changed, **{name: value for name, value in names.items() if name in raw}}

    def _without_value(self, row: Mapping[str, Any]) -> list[str]:
        """Columns that are null because the row is for other training: not asked for, and no half of a pair."""
        nulls = [key for key in ("completion", "chosen", "rejected") if key in row and row[key] is None]
        if row.get("chosen") is not None or row.get("rejected") is not None:
            nulls = [key for key in nulls if key == "completion"]
        return [key for key in nulls if key not in self._mapping]

    def _has_label(self, raw: Mapping[str, Any]) -> bool:
        """``label`` is a common name, so it counts where it is mapped or the file has all of KTO's columns itself."""
        config = self.config
        if config.label is not None:
            return True
        return (
            config.prompt is None
            and config.completion is None
            and all(key in raw for key in _KTO)
            and raw["completion"] is not None
        )

    def _extract_answer(self, row: Mapping[str, Any]) -> str:
        assert self._answer_pattern is not None
        answer = row.get("answer")
        if answer is None:
            raise BadRow("no 'answer' column for answer_pattern")
        if not isinstance(answer, str):
            raise BadRow(f"'answer' is {kind_of(answer)}, but answer_pattern needs a string")
        match = self._answer_pattern.search(answer)
        if match is None:
            raise BadRow(f"answer_pattern {self.config.answer_pattern!r} does not occur in the answer {_short(answer)}")
        return (match.group(1) if match.re.groups else match.group()).strip()

    def _warn(self, skipped: list[str], kept: int) -> None:
        places = "\n".join(f"    {place}" for place in skipped[:_SHOWN_SKIPS])
        more = f"\n    and {len(skipped) - _SHOWN_SKIPS} more" if len(skipped) > _SHOWN_SKIPS else ""
        logger.warning(
            "%s: skipped %d of %d rows:\n%s%s", self.describe(), len(skipped), len(skipped) + kept, places, more
        )

    def _no_rows(self, skipped: list[str]) -> str:
        if skipped:
            return f"{self.describe()}: none of its {len(skipped)} rows can be used; the first: {skipped[0]}"
        if self.config.skip_first:
            return f"{self.describe()}: no rows after the first {self.config.skip_first}\n    lower skip_first"
        return f"{self.describe()}: there are no rows"


def holdout_mask(rows: int, holdout: int) -> np.ndarray:
    """bool [rows]: which rows are held out, a function of the two numbers alone.

    The last ``holdout`` of a fixed permutation; ``RandomState`` because its stream is frozen
    across numpy versions (NEP 19).
    """
    mask = np.zeros(rows, bool)
    mask[np.random.RandomState(0).permutation(rows)[rows - holdout :]] = True
    return mask


def digest_rows(rows: Iterable[Any]) -> str:
    """SHA-256 over rows as JSON; values JSON does not know enter as their ``repr``."""
    digest = hashlib.sha256()
    for row in rows:
        try:
            digest.update(json.dumps(row, sort_keys=True, default=repr).encode())
        except (TypeError, ValueError):  # keys that are no text; a number of more digits than Python writes down
            digest.update(pickle.dumps(row))
        digest.update(b"\n")
    return digest.hexdigest()


def _prepend_system(row: dict[str, Any], system: str) -> None:
    for key in ("prompt", "messages"):
        value = row.get(key)
        if isinstance(value, str):
            row[key] = [{"role": "system", "content": system}, {"role": "user", "content": value}]
        elif value and value[0]["role"] != "system":
            row[key] = [{"role": "system", "content": system}, *value]


def _short(text: str, length: int = 80) -> str:
    return repr(text if len(text) <= length else "…" + text[-length:])
