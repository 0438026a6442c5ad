"""Writing a tokenizer so that loading it gives the same one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any


def save_tokenizer(tokenizer: Any, directory: str) -> None:
    """Write a Hugging Face tokenizer's files.

    transformers leaves out arguments of the tokenizer's class that it gives no further, such as Llama's ``legacy``.
    ``AutoTokenizer`` builds these classes from their arguments, not from ``tokenizer.json``: without them it divides
    what follows a special token otherwise (Llama 2, Mistral 7B, Zephyr).
    """
    tokenizer.save_pretrained(directory)
    file = Path(directory, "tokenizer_config.json")
    fields = json.loads(file.read_text(encoding="utf-8"))
    lost = {}
    for name, parameter in inspect.signature(type(tokenizer).__init__).parameters.items():
        value = getattr(tokenizer, name, None)
        if name not in fields and isinstance(value, bool | int | float) and value != parameter.default:
            lost[name] = value
    if lost:
        file.write_text(json.dumps(fields | lost, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
