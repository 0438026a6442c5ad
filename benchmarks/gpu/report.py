"""Results as Markdown, for docs/performance.md and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, Any]


def markdown(results: Results) -> str:
    """What was found, in two tables."""
    return "\n".join([*_head(results), "", *_speeds(results), "", *_equality(results), *_failures(results)])


def verdict(results: Results) -> bool:
    """Whether every equality case ran, or was skipped for a reason of the machine, and held."""
    return all(c["status"] in ("ok", "skipped") for c in results["cases"] if c["part"] == "equality")


def _head(results: Results) -> Iterator[str]:
    facts = results["facts"]
    versions = ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items() if number)
    driver = f", driver {facts['driver']}" if facts.get("driver") else ""
    yield f"{facts.get('device', 'no device')}{driver}; {versions}; commit {results['commit'] or 'unknown'};"
    yield f"{results['created'][:10]}, {results['seconds']:.0f} s:"
    yield ""
    yield f"    {results['command']}"


def _speeds(results: Results) -> Iterator[str]:
    yield "| model | step | tokens/s | seconds | MFU | goal | peak GiB | of |"
    yield "|---|---|---|---|---|---|---|---|"
    for case in results["cases"]:
        for line in case["found"] if case["part"] == "speed" else ():
            memory = "-" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**30:.1f}"
            yield (
                f"| {line['model']} | {line['what']} | {line['tokens_per_second']:,.0f} | {line['seconds']:.3f} "
                f"| {_percent(line['mfu'])} | {_percent(line['goal'])} | {memory} | {line['note']} |"
            )


def _equality(results: Results) -> Iterator[str]:
    yield "| case | compared | worst: difference | tolerance | | seconds |"
    yield "|---|---|---|---|---|---|"
    for case in results["cases"]:
        if case["part"] != "equality":
            continue
        seconds = "-" if case["seconds"] is None else f"{case['seconds']:.1f}"
        if not case["found"]:
            why = f": {case['detail']}" if case["status"] == "skipped" else ""
            yield f"| {case['name']} | 0 | | | {case['status']}{why} | {seconds} |"
            continue
        worst = max(case["found"], key=_share)
        yield (
            f"| {case['name']} | {len(case['found'])} | {worst['what']}: {worst['difference']:.2g} "
            f"| {worst['tolerance']:.2g} | {case['status']} | {seconds} |"
        )


def _failures(results: Results) -> Iterator[str]:
    for case in results["cases"]:
        odd = [f for f in case["found"] if not f["holds"]]
        if case["status"] in ("ok", "skipped"):
            continue
        yield f"\n{case['name']}: {case['status']}"
        for line in odd:
            yield f"    {line['what']}: {line['difference']:.4g} is more than {line['tolerance']:.4g} {line['note']}"
        yield from (f"    {line}" for line in case["detail"].rstrip().splitlines()[-12:])


def _share(line: Mapping[str, Any]) -> float:
    """How much of its tolerance a difference takes; what is not a number is worst."""
    difference, tolerance = line["difference"], line["tolerance"]
    if difference != difference:
        return float("inf")
    return difference / tolerance if tolerance else (float("inf") if difference else 0.0)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
