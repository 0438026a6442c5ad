"""What the user sees when a run ends: figures, where things are, and some completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_secrets.redaction import mask_known

if TYPE_CHECKING:
    from rl_core.training.pipeline import Outcome

_SHOWN = ("train/loss", "rollout/reward_mean", "eval/accuracy", "eval/loss", "eval/reward_mean")
_PICTURES = ("*.png",)


def show(outcome: Outcome) -> None:
    """Print the closing summary to standard output."""
    from rich.console import Console

    console = Console()
    if outcome.samples:
        console.print(samples_table(outcome.samples))
    if outcome.metrics:
        console.print(stages_table(outcome))
    for profile in outcome.profiles:
        if (shown := profile.render()) is not None:
            console.print(shown, soft_wrap=True, highlight=False)
    for label, path in _places(outcome):
        console.print(f"[bold]{label:<12}[/bold] {path}", soft_wrap=True, highlight=False)


def samples_table(samples: list[dict[str, Any]], limit: int = 10) -> Any:
    """The first completions of the last evaluation."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Completions after training", title_justify="left")
    for column in ("prompt", "completion", "answer"):
        table.add_column(column, overflow="fold", max_width=48)
    table.add_column("reward", justify="right")
    for row in samples[:limit]:
        texts = [Text(_short(mask_known(row.get(c)))) for c in ("prompt", "completion", "answer")]
        table.add_row(*texts, f"{row['reward']:.3g}" if row.get("reward") is not None else "")
    return table


def stages_table(outcome: Outcome) -> Any:
    """Last metrics of each stage, with its wall time."""
    from rich.table import Table

    table = Table(title="Result", title_justify="left")
    table.add_column("stage")
    names = [n for n in _SHOWN if any(n in m for m in outcome.metrics.values())]
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")
    for stage, metrics in outcome.metrics.items():
        values = [f"{metrics[n]:.4g}" if n in metrics else "" for n in names]
        table.add_row(stage, *values, f"{outcome.seconds.get(stage, 0.0):.1f}")
    return table


def _places(outcome: Outcome) -> list[tuple[str, Any]]:
    places: list[tuple[str, Any]] = [("run", outcome.directory)]
    for pattern in _PICTURES:
        places += [("plot", p) for p in sorted(outcome.directory.glob(pattern))]
    for label, name in (("metrics", "metrics.jsonl"), ("samples", "samples.jsonl")):
        if (outcome.directory / name).exists():
            places.append((label, outcome.directory / name))
    if outcome.export.is_dir():
        places.append(("model", outcome.export))
    return places


def _short(value: Any, limit: int = 400) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
