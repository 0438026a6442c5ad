"""Files of a run directory that trackers keep."""

from __future__ import annotations

from pathlib import Path

from rl_secrets.redaction import hide_secrets


def pictures(directory: str | Path) -> list[Path]:
    """The PNG files in the run directory and in those of its stages."""
    top = Path(directory)
    return sorted(path for pattern in ("*.png", "stages/*/*.png") for path in top.glob(pattern) if path.is_file())


def text_without_secrets(path: Path) -> str | None:
    """A text file with ``***`` for secrets, None where there is no such file."""
    if not path.is_file():
        return None
    return hide_secrets(path.read_text(encoding="utf-8", errors="replace"))


def export_folder(directory: str | Path, stage: str) -> Path | None:
    """The exported model of a stage, where there is one."""
    top = Path(directory)
    found = [path for path in (top / "stages" / stage / "export", top / "export") if path.is_dir()]
    return found[0] if found else None
