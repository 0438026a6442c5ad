"""The end tokens in an export's ``generation_config.json``, where every engine that serves it looks for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

NAME = "generation_config.json"


def add_end_tokens(folder: Path, ends: Sequence[int]) -> None:
    """Make the ``eos_token_id`` of the folder's generation config ``ends``, then what it lists besides.

    A model that does not generate (a reward model) has no such file and gets none.
    """
    path = folder / NAME
    if not path.is_file() or not ends:
        return
    fields = json.loads(path.read_text(encoding="utf-8"))
    given = fields.get("eos_token_id")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    wanted = list(dict.fromkeys([*ends, *listed]))
    fields["eos_token_id"] = wanted[0] if len(wanted) == 1 else wanted
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
