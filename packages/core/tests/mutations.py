"""Configs that are nearly valid: a seeded mutator over examples and over one config for every installed component."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

from rl_core.config.compose import LISTS
from rl_core.config.select import KIND_OF
from rl_core.config.yaml_rules import dump_yaml

Path = tuple[str | int, ...]
MISSING = object()

SFT: dict[str, Any] = {
    "run": {"name": "seed", "steps": 4, "seed": 1, "cpus": 1},
    "model": {
        "init": {"architecture": "qwen2", "hidden_size": 32, "layers": 2, "heads": 2, "ffn": 64},
        "max_length": 512,
    },
    "tokenizer": {"name": "characters", "vocab_size": 64},
    "backend": {"name": "fsdp2", "max_tokens_per_microbatch": 512},
    "algorithm": {"name": "sft", "sequences_per_step": 4, "learning_rate": 1e-3, "optimizer": {"betas": [0.9, 0.99]}},
    "data": {"name": "jsonl", "path": "rows.jsonl", "limit": 10},
}
RL: dict[str, Any] = {
    **SFT,
    "algorithm": {"name": "grpo", "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-3},
    "generator": {"name": "hf", "max_new_tokens": 8, "stop": ["\n"]},
    "rewards": [{"name": "exact_match", "weight": 0.5}, {"name": "numeric", "tolerance": 0.1}],
    "evaluators": [{"name": "accuracy", "every": 2}],
    "eval_data": {"name": "jsonl", "path": "rows.jsonl", "holdout": 2, "split": "holdout"},
    "loggers": [{"name": "jsonl"}],
}
STAGES: dict[str, Any] = {
    "run": {"name": "two", "cpus": 1},
    **{key: RL[key] for key in ("backend", "tokenizer", "generator", "rewards")},
    "stages": [
        {"name": "sft", **{key: SFT[key] for key in ("model", "algorithm", "data")}, "run": {"steps": 2}},
        {
            "name": "grpo",
            "model": {"path": "${stages.sft.export}", "max_length": 512},
            **{key: RL[key] for key in ("algorithm", "data")},
            "run": {"steps": 3, "require": "eval/accuracy >= 0.1"},
        },
    ],
}
NEEDED = {
    ("data_source", "parquet"): {"path": "rows.parquet"},
    ("data_source", "jsonl"): {"path": "rows.jsonl"},
    ("data_source", "huggingface"): {"path": "org/data"},
    ("data_source", "python"): {"function": "rows.py:rows"},
    ("reward", "function"): {"function": "rows.py:reward"},
    ("reward", "regex"): {"pattern": "a+"},
    ("reward", "model"): {"path": "org/reward"},
    ("environment", "python"): {"class": "rows.py:Game"},
    ("environment", "tools"): {"tools": ["rows.py:tool"]},
    ("algorithm", "rm"): {"pairs_per_step": 4},
    ("algorithm", "dpo"): {"pairs_per_step": 4},
}
"""Fields that a component needs besides its name."""


def seeds(components: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """A config that selects each of the installed ``(kind, name)``, and a few that use more of what configs can do."""
    made = [SFT, RL, STAGES]
    sections = {kind: section for section, kind in KIND_OF.items() if section != "eval_data"}
    for kind, name in components:
        given = {"name": name, **NEEDED.get((kind, name), {})}
        section = sections[kind]
        base = SFT if kind == "algorithm" and name in ("sft", "rm", "dpo") else RL
        base = {key: value for key, value in base.items() if key not in ("rewards", "generator") or base is RL}
        made.append({**base, section: [given] if section in LISTS else given})
    return [copy.deepcopy(one) for one in made]


@dataclass
class Case:
    """One mutated config: files by name (``c.yaml`` is checked), overrides, and the tree they all say, if known."""

    files: dict[str, str]
    overrides: list[str] = field(default_factory=list)
    tree: dict[str, Any] | None = None


KINDS = ("delete", "rename", "add", "copy", "raw", "wrap", "override")

SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1.5, 0.0, -0.0, 1e-9, 1e308, float("inf"), float("nan"), 2**53 + 1),
    *(2**63, -(2**63), 10**30, 10**400, "", " ", "1", "1.5", "true", "yes", "1_000", "1,000", "0x10", "１２"),
    *("a", "auto", "none", "é", "\u202e", "\ud800", "\x00", "漢" * 50, "n" * 300, "x" * 5000, "../..", "~", "~no/x"),
    *("s3://a/b", "${run.seed}", "${run}", "${run.steps}", "${model}", "${rewards.0}", "${env:HOME}", "${env:NO:5}"),
    *("${env:NO_SUCH}", "${stages.sft.export}", "${now}", "${", "$${x}", "${run.name}${run.name}", "${a.b}", "a.py:b"),
    *("%s", "{x}", "{", "(", "*", "90s", "1h", "sft", "grpo", "hf", "fsdp2", "jsonl"),
    *([], {}, [1], [True], ["a"], [[]], [{}], {"name": "sft"}, {"name": None}, {"a": {"b": 1}}, [None, 1], {"": 1}),
]  # fmt: skip
RAW = [
    "1_000",
    "0o17",
    "0x1F",
    "1:30",
    "1e-6",
    "+1",
    ".5",
    "5.",
    "1e400",
    "yes",
    "on",
    "~",
    "2024-01-05",
    "!!str 1",
    "!!int x",
]
RAW += [
    "*no",
    "&a 1",
    "!x y",
    "'a",
    '"\\UFFFFFFFF"',
    "9" * 5000,
    "[1, 2",
    "{a: 1",
    "|\n  text",
    "? x",
    "<<: 1",
    "\t1",
    "@a",
    "`a",
]
KEYS = [
    "name",
    "path",
    "steps",
    "seed",
    "init",
    "weight",
    "é",
    "a b",
    "",
    "run",
    "x" * 200,
    "1",
    "true",
    "extends",
    "<<",
    "\ud800",
]


def mutate(seed: dict[str, Any], rng: random.Random) -> Case:
    """``seed`` with one to four changes."""
    tree: Any = copy.deepcopy(seed)
    raws: dict[str, str] = {}
    overridden: list[tuple[Path, Any]] = []
    case = Case({})
    plain = True
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        kind = rng.choice(("value", "value", "value", "tweak", "tweak", "tweak", *KINDS))
        path = rng.choice(list(_paths(tree)) or [()])
        if kind == "value":
            tree = _put(tree, path, copy.deepcopy(rng.choice(SCALARS)))
        elif kind == "tweak":
            tree = _put(tree, path, _tweaked(_get(tree, path), rng))
        elif kind == "delete":
            tree = _put(tree, path, MISSING)
        elif kind == "rename":
            tree = _rename(tree, path, rng)
        elif kind == "add":
            tree = _add(tree, path, rng.choice(KEYS), copy.deepcopy(rng.choice(SCALARS)))
        elif kind == "copy":
            tree = _put(tree, path, copy.deepcopy(_get(tree, rng.choice(list(_paths(tree)) or [()]))))
        elif kind == "raw":
            mark = f"RAW{len(raws)}RAW"
            raws[mark] = rng.choice(RAW)
            tree = _put(tree, path, mark)
        elif kind == "wrap":
            value = _get(tree, path)
            tree = _put(tree, path, [value] if rng.random() < 0.5 else {rng.choice(KEYS): value})
        else:
            if rng.random() < 0.1:
                path = (rng.choice(KEYS),)
            if rng.random() < 0.3:
                text = rng.choice(RAW)
                plain = False
            else:
                tweak = rng.random() < 0.6 and _has(tree, path)
                value = _tweaked(_get(tree, path), rng) if tweak else rng.choice(SCALARS)
                text = _written(value)
                overridden.append((path, value))
            plain = plain and text != "?" and not any(set(".=\n") & set(str(key)) or key == "" for key in path)
            case.overrides.append(f"{'.'.join(map(str, path))}={text}")
    if not isinstance(tree, dict):
        tree = {"run": tree}
    plain = plain and not raws
    case.tree = _in_full(tree, overridden) if plain else None
    _write(case, tree, raws, rng)
    return case


def _in_full(tree: Any, overridden: list[tuple[Path, Any]]) -> Any:
    """``tree`` with its overrides, and in each stage what all of them share; None where an override has no place."""
    tree = copy.deepcopy(tree)
    for path, value in overridden:
        try:
            tree = _put(tree, path, copy.deepcopy(value))
        except (LookupError, TypeError):
            return None
    if isinstance(stages := tree.get("stages"), list):
        shared = {key: value for key, value in tree.items() if key != "stages"}
        tree["stages"] = [_merged(shared, stage) for stage in stages]
    return tree


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def _has(tree: Any, path: Path) -> bool:
    try:
        _get(tree, path)
    except (LookupError, TypeError):
        return False
    return True


def _tweaked(value: Any, rng: random.Random) -> Any:
    """Another value of the same kind, or one that is nearly of it."""
    if isinstance(value, bool):
        return rng.choice((not value, not value, int(value), str(value), "yes"))
    if isinstance(value, int | float):
        near = (True, f"{value}_0", f" {value}", f"{value},0")
        return rng.choice((value + 1, value * 2, value / 2, float(value), str(value), 0, 1, rng.choice(near)))
    if isinstance(value, list):
        return rng.choice((value[::-1], value[:1], value * 2))
    return dict(reversed(value.items())) if isinstance(value, dict) else value


def _write(case: Case, tree: dict[str, Any], raws: dict[str, str], rng: random.Random) -> None:
    """Into one file, or several that extend one another, or with a key given twice."""
    how = rng.random()
    if how < 0.1 and len(tree) > 1:
        below = rng.sample(list(tree), rng.randint(1, len(tree) - 1))
        case.files["base.yaml"] = _text({key: tree[key] for key in below}, raws)
        tree = {key: value for key, value in tree.items() if key not in below}
        names = ["base.yaml", "c.yaml", "no.yaml", "base.yaml", "./base.yaml", "n" * 300, "\x00", ".", 7, None]
        tree = {"extends": rng.choice([*names, ["base.yaml", "base.yaml"], rng.sample(names, 2)]), **tree}
    text = _text(tree, raws)
    if 0.1 <= how < 0.15:
        case.tree = None
        lines = text.splitlines()
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines or [""]))
        text = "\n".join(lines)
    elif 0.15 <= how < 0.2:
        case.tree = None
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at]
            + rng.choice(["\t", "\x00", "\ufeff", ":", "#", "- ", "\r", "\x85", "{", "'", "&a ", "*a"])
            + text[at:]
        )
    case.files["c.yaml"] = text


def _text(tree: Any, raws: dict[str, str]) -> str:
    try:
        text = dump_yaml(tree)
    except (ValueError, UnicodeError):  # a number of more digits than Python writes down
        text = "run: {steps: 1}\n"
    for mark, raw in raws.items():
        text = text.replace(f"'{mark}'", raw).replace(mark, raw)
    return text


def _written(value: Any) -> str:
    try:
        return dump_yaml(value).removesuffix("\n...\n").strip()
    except (ValueError, UnicodeError):
        return "?"


def _paths(tree: Any, path: Path = ()) -> Any:
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _get(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: Any, path: Path, value: Any) -> Any:
    if not path:
        return tree if value is MISSING else value
    parent = _get(tree, path[:-1])
    if value is MISSING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return tree


def _rename(tree: Any, path: Path, rng: random.Random) -> Any:
    if path and isinstance(path[-1], str):
        parent = _get(tree, path[:-1])
        value = parent.pop(path[-1])
        name = path[-1]
        at = rng.randrange(len(name) + 1)
        new = rng.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper(), rng.choice(KEYS)])
        parent[new] = value
    return tree


def _add(tree: Any, path: Path, key: str, value: Any) -> Any:
    parent = _get(tree, path)
    if isinstance(parent, dict):
        parent[key] = value
    elif isinstance(parent, list):
        parent.append(value)
    return tree
