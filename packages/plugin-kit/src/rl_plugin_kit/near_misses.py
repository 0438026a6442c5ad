"""The rule that no method has almost the name of one that core would call: it would be left out without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

AS_NEAR = 0.82
"""From this ratio of :mod:`difflib` on, names are near: one letter of five is another name (``stats``, ``state``)."""

_OTHER_WORDS = {"get": "", "on": "", "do": "", "dict": "", "set": "load", "restore": "load"}
"""Words that other libraries put into these names (``state_dict``, ``on_close``), and what stands for them here."""


def near_misses(component: type, contracts: Iterable[type], optional: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """``(its method, the contract's)`` for each method that a class does not define, but one of nearly the name.

    Args:
        component: the class; what its bases from other packages define is not looked at.
        contracts: Protocols whose methods core calls.
        optional: names of further ones.
    """
    wanted = {name for one in contracts for name in vars(one) if _is_public_method(one, name)} | set(optional)
    package = component.__module__.partition(".")[0]
    own = [base for base in component.__mro__ if base.__module__.partition(".")[0] == package]
    others = [base for base in component.__mro__ if base not in own and not base.__module__.startswith("rl_core.")]
    missing = sorted(name for name in wanted if not any(name in vars(base) for base in (*own, *others)))
    methods = dict.fromkeys(name for base in own for name in vars(base) if _is_public_method(base, name))
    for method in methods:
        if method not in wanted:
            yield from ((method, name) for name in missing if _near(method, name))


def _is_public_method(owner: type, name: str) -> bool:
    return not name.startswith("_") and (callable(vars(owner)[name]) or isinstance(vars(owner)[name], property))


def _near(found: str, wanted: str) -> bool:
    plain = wanted.replace("_", "")
    words = "".join(_OTHER_WORDS.get(word, word) for word in found.lower().split("_"))
    spellings = (found.lower().replace("_", ""), words)
    return any(SequenceMatcher(None, one, plain).ratio() >= AS_NEAR for one in spellings)
