"""The kinds of plugins ``rl plugin new`` can write, and what differs between them outside their templates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PluginKind:
    """One kind; its files are in ``templates/<name>/``.

    Attributes:
        name: what is typed after ``rl plugin new``, and the middle of the package's name.
        component: the kind of component it offers, one of :data:`rl_core.component.KINDS`.
        suffix: end of the class name.
        summary: what the generated code does, for ``rl plugin new --help``.
        dependencies: besides rl-core and pydantic. Packages of this project get the range of versions of rl-core.
        test_dependencies: likewise, for the extra ``test``: what its tests and its tiny run need.
    """

    name: str
    component: str
    suffix: str
    summary: str
    dependencies: tuple[str, ...] = ()
    test_dependencies: tuple[str, ...] = ()

    @property
    def suite(self) -> str:
        """The class in :mod:`rl_plugin_kit.suites` that checks what it promises."""
        return "".join(part.capitalize() for part in self.component.split("_")) + "Conformance"


NUMPY = "numpy>=1.26"
TORCH = "torch>=2.11"
TRANSFORMERS = "transformers>=5.18,<6"

ALGORITHM, BACKEND, GENERATOR, REWARD = "rl-algo-grpo", "rl-backend-fsdp2", "rl-generation-hf", "rl-reward-rule"
ON_EXAMPLES = ("rl-algo-sft-rm", BACKEND, "rl-data-text")
ON_ROLLOUTS = (ALGORITHM, BACKEND, "rl-data-text", GENERATOR, REWARD)
"""What a tiny run is made of, besides the component under test."""


def _without(packages: tuple[str, ...], own: str) -> tuple[str, ...]:
    return tuple(one for one in packages if one != own)


PLUGIN_KINDS = (
    PluginKind(
        "algorithm",
        "algorithm",
        "Algorithm",
        "REINFORCE with the group's mean reward as baseline",
        dependencies=(NUMPY, TORCH),
        test_dependencies=("rl-torch", *_without(ON_ROLLOUTS, ALGORITHM)),
    ),
    PluginKind(
        "backend",
        "backend",
        "Backend",
        "plain PyTorch training in one process, on CPU or one GPU",
        dependencies=(NUMPY, "rl-torch", TORCH, TRANSFORMERS),
        test_dependencies=_without(ON_EXAMPLES, BACKEND),
    ),
    PluginKind(
        "generator",
        "generator",
        "Generator",
        "a sampling loop over a Hugging Face model",
        dependencies=(NUMPY, "rl-rollout", "rl-torch", TORCH, TRANSFORMERS),
        test_dependencies=_without(ON_ROLLOUTS, GENERATOR),
    ),
    PluginKind(
        "data",
        "data_source",
        "Source",
        "prompts and answers from the lines of a text file",
        test_dependencies=ON_EXAMPLES,
    ),
    PluginKind(
        "reward",
        "reward",
        "Reward",
        "full reward at a wanted length, less with the distance from it",
        test_dependencies=_without(ON_ROLLOUTS, REWARD),
    ),
    PluginKind(
        "environment",
        "environment",
        "Environment",
        "asks again until the answer is right",
        test_dependencies=ON_ROLLOUTS,
    ),
    PluginKind(
        "evaluator",
        "evaluator",
        "Evaluator",
        "how many greedy completions contain the answer",
        dependencies=(NUMPY,),
        test_dependencies=ON_ROLLOUTS,
    ),
    PluginKind("logger", "logger", "Logger", "metrics as lines of a CSV file", test_dependencies=ON_EXAMPLES),
)
