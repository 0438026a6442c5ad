"""docs/models.md from docs/models.json, which holds what the sweep over model families found.

``hatch run models`` writes the page again; ``hatch run models FAMILY …`` tries these families first, ``hatch run models
all`` every one (some ten minutes). Without a family it needs no PyTorch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md"

Found = dict[str, dict[str, str]]

_PACKINGS = ("ragged", "packed", "padded")
_INTRODUCTION = """\
# Models: which families work

A sweep builds a tiny model with random weights of each causal family of transformers {version} and runs it through the
backend `fsdp2` and the generator `hf`: log-probs with every packing, each sequence in a batch with longer ones, the
gradient, greedy completions, the exported folder, LoRA (merged, and the adapter alone), and the score of a reward
model. Each number is compared with what transformers computes in float32 for one sequence at a time, with its "eager"
attention and in evaluation mode. Folders of models for images and text are read and written in their published form;
only their text model is trained. The sweep uses one process in float32, and also loads each model in parts and sharded,
as several processes or 16-bit runs do. All families are here, except encoders that transformers can also run as
language models. This page is generated: `hatch run models all` writes it again, `hatch run nightly` compares it with
the code.

- **Packing**: the values of `backend.packing` that are right, and *ragged* with the kernel `cpu`. `auto` takes one of
  them: `padded` where a family does not keep the sequences of a row apart. On GPUs `attention: auto` attends to packed
  rows sequence by sequence, also with the soft-capped scores of Gemma 2 and the sinks of gpt-oss.
- **Generates**: *yes, slowly* where the family keeps a state that a cache of keys and values cannot hold; the generator
  `hf` then reads the whole sequence again for every token. Take `vllm` for such a model where it supports it.
- **Reward**: *no class* where transformers has no sequence classifier of the family, or one with another head.

## Nothing in a model is random, or depends on its batch
Models are trained in evaluation mode: no dropout, no jitter of routers, whatever the field is called. An export's
`config.json` keeps the folder's values.

With the RoPE types `longrope` (Phi-3, Phi-4) and `dynamic`, transformers picks frequencies by the longest position of
the batch. Here `model.max_length` decides for the whole run, in trainers and generators: up to the length the model was
trained with (`original_max_position_embeddings`; for `dynamic`, `max_position_embeddings`) all sequences have what
transformers computes for them alone; with a longer `max_length` all have the frequencies that a sequence of that length
has. vLLM picks those of `longrope` by its context length in the same way; for `dynamic` it has another formula, so
train such a model with the generator `hf`.

## Routers
Where a model's `config.json` has `output_router_logits: true` and a `router_aux_loss_coef`, the backend `fsdp2` adds
the balancing loss that transformers adds, computed per micro-batch, to every loss that the policy is trained with; the
metric `router_aux_loss` is its value without the coefficient. Most published configs have `false`: then there is none.

## Families
"""
_REFUSED = """
## Refused, or wrong, as a whole or in part
"""


def page(results: dict[str, Found]) -> str:
    """The page.

    Args:
        results: ``families`` (by name: stage to what was found), ``refused`` (name to reason), ``transformers``.
    """
    families = results["families"]
    lines = [_INTRODUCTION.format(version=results["transformers"])]
    lines += ["| `model_type` | Packing | Generates | Export | LoRA | Reward |", "|---|---|---|---|---|---|"]
    refused = {name: found["load"] for name, found in families.items() if found.get("load") != "ok"}
    for name, found in sorted(families.items()):
        if name not in refused:
            lines.append(f"| {name} | {' | '.join(_columns(found))} |")
    lines.append(_REFUSED)
    for name, why in sorted(refused.items()):
        because = results["refused"].get(name)
        lines.append(f"- `{name}`: {f'{because} (' if because else ''}{_reason(why)}{')' if because else ''}")
    for name, found in sorted(families.items()):
        notable = {stage: why for stage, why in found.items() if name not in refused and _is_notable(stage, why)}
        lines += [f"- `{name}`, {_STAGE.get(stage, stage)}: {_reason(why)}" for stage, why in notable.items()]
    return "\n".join(lines) + "\n"


_STAGE = {
    "adapter": "LoRA",
    "sharded": "with several processes, 16 bits or offloading",
    "reward": "reward model",
    "generate": "generation",
    "gradient": "training",
}


def _is_notable(stage: str, found: str) -> bool:
    """A refusal that the table does not explain."""
    return stage not in (*_PACKINGS, "auto", "load") and not found.startswith(("ok", "none"))


def _columns(found: dict[str, str]) -> list[str]:
    packings = ", ".join(name for name in _PACKINGS if found[name] == "ok")
    slowly = found["generate"].startswith("ok: ")
    return [
        packings,
        "yes, slowly" if slowly else _yes(found["generate"]),
        _yes(found["export"]),
        _yes(found["adapter"]),
        "no class" if found["reward"].startswith("none") else _yes(found["reward"]),
    ]


def _yes(found: str) -> str:
    return "yes" if found.startswith("ok") else "**no**"


def _reason(found: str) -> str:
    first = found.partition("\n")[0].partition(": ")[2].partition(". ")[0]
    return first.replace("|", "\\|").replace("<", "&lt;")[:300]


def sweep(names: list[str]) -> None:
    """Try families and keep what was found."""
    sys.path.insert(0, str(ROOT / "tests"))
    import families
    import family_sweep
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results: dict[str, Any] = read() if RESULTS.exists() else {"families": {}}
    results |= {"transformers": transformers.__version__, "refused": families.REFUSED}
    for name in families.FAMILIES if names == ["all"] else names:
        results["families"][name] = family_sweep.sweep(name)
        write(results)


def read() -> dict[str, Found]:
    """What the sweep found."""
    return json.loads(RESULTS.read_text())


def write(results: dict[str, Found]) -> None:
    """Keep what the sweep found."""
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        sweep(sys.argv[1:])
    PAGE.write_text(page(read()))
