"""The trained model as a Hugging Face folder."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rl_core.contracts.tokenizer import end_token_ids
from rl_core.errors import RLError, StorageError
from rl_core.training.generation_config import add_end_tokens
from rl_core.training.manifest import fsync_all

if TYPE_CHECKING:
    from rl_core.contracts.tokenizer import Tokenizer
    from rl_core.model import Model


def export_model(policy: Model, tokenizer: Tokenizer, target: Path) -> None:
    """Write a model and its tokenizer as a Hugging Face folder; complete or absent.

    Raises:
        StorageError: there is no room for it.
    """
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        policy.export(str(temporary))
        tokenizer.save(str(temporary))
        add_end_tokens(temporary, end_token_ids(tokenizer))
        fsync_all(temporary)  # that the stage has finished is written next
    except (OSError, RLError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        full = os.strerror(errno.ENOSPC)
        if full in str(error):  # a library's error, or a worker's: only its text says so
            raise StorageError(
                f"{target} cannot be written: {full}; the checkpoint that it is made of is kept\n"
                "    make room, then make it with: rl resume RUN_DIR (or rl export RUN_DIR)"
            ) from error
        raise
    replaced = target.with_name(f".old-{target.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)  # and not removed in its place, where half of it would look like a model
    temporary.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
