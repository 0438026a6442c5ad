"""Conformance rules for data sources (:mod:`rl_core.contracts.data`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rl_core.contracts.data import DataSource, Row

from rl_plugin_kit.suites.base import ComponentConformance

LOOKED_AT = 100


class DataSourceConformance(ComponentConformance):
    """``fields`` name a small source with at least one row."""

    kind = "data_source"
    contracts = (DataSource,)

    def test_rows_are_dicts_that_know_where_they_come_from(self) -> None:
        rows = self._rows()
        for index, row in enumerate(rows[:LOOKED_AT]):
            self.expect(isinstance(row, Mapping), f"row {index} is {type(row).__name__}, not a dict")
            where = row.get("__where__")
            self.expect(
                isinstance(where, str) and where, f"row {index} has no '__where__' (file:line or the like): {dict(row)}"
            )
            try:
                json.dumps(dict(row))
            except (TypeError, ValueError) as error:
                self.expect(False, f"row {index} holds a value that JSON does not have: {error}")

    def test_rows_stay_where_they_are(self) -> None:
        rows = self._rows()
        count = len(rows)
        self.expect(count > 0, "load returned no rows; name a source with some in `fields`")
        once, again = ([dict(row) for row in list(rows)[:LOOKED_AT]] for _ in range(2))
        self.expect(once == again, "going through the rows twice gives other rows")
        self.expect(len(rows) == count, f"there are {count} rows before, and {len(rows)} after going through them")
        picked = [dict(rows[index]) for index in range(min(count, LOOKED_AT))]
        self.expect(picked == once, "rows[i] is not the i-th row that iterating gives")
        self.expect(dict(rows[count - 1]) == dict(rows[-1]), "rows[-1] is not the last row")
        try:
            rows[count]
        except IndexError:
            return
        self.expect(False, f"rows[{count}] of {count} rows is no IndexError")

    def test_loading_again_gives_the_same_rows(self) -> None:
        first, second = self.build(), self.build()
        a, b = ([dict(row) for row in source.load()[:LOOKED_AT]] for source in (first, second))
        self.expect(a == b, "two sources with the same config give different rows, so a resumed run would differ")
        prints = [first.fingerprint(), second.fingerprint()]
        self.expect(isinstance(prints[0], str) and prints[0], f"fingerprint() is {prints[0]!r}, not a digest")
        self.expect(prints[0] == prints[1], f"the same rows have the fingerprints {prints[0]} and {prints[1]}")

    def test_the_report_counts_the_rows(self) -> None:
        source = self.build()
        rows = source.load()
        report: Any = source.report()
        self.expect(
            report.get("rows") == len(rows) and isinstance(report.get("skipped"), int),
            f"report() is {dict(report)} after load returned {len(rows)} rows; it counts rows and skipped",
        )

    def _rows(self) -> Sequence[Row]:
        return self.build().load()
