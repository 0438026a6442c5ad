"""Names of layers, and how a config's ``target_modules`` mean them."""

from __future__ import annotations


def is_named(name: str, end: str) -> bool:
    """Whether ``name`` is ``end``, or ends with it at a dot."""
    return name == end or name.endswith(f".{end}")


def last_part(name: str) -> str:
    """``q_proj`` of ``model.layers.0.self_attn.q_proj``."""
    return name.rpartition(".")[2]
