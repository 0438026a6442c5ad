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
        dependencies: besides rl-core and pydantic. ``rl-torch`` gets the same range of versions as rl-core.
        test_dependencies: likewise, for the extra ``test``.
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

    @property
    def uses_torch(self) -> bool:
        """Whether the package or its tests install PyTorch."""
        return any(one.startswith("torch") for one in self.dependencies)


NUMPY = "numpy>=1.26"
TORCH = "torch>=2.7"
TRANSFORMERS = "transformers>=5.17,<6"

PLUGIN_KINDS = (
    PluginKind(
        "algorithm",
        "algorithm",
        "Algorithm",
        "REINFORCE with the group's mean reward as baseline",
        dependencies=(NUMPY, TORCH),
        test_dependencies=("rl-torch",),
    ),
    PluginKind(
        "backend",
        "backend",
        "Backend",
        "plain PyTorch training in one process, on CPU or one GPU",
        dependencies=(NUMPY, "rl-torch", TORCH, TRANSFORMERS),
    ),
    PluginKind(
        "generator",
        "generator",
        "Generator",
        "a sampling loop over a Hugging Face model",
        dependencies=(NUMPY, "rl-torch", TORCH, TRANSFORMERS),
    ),
    PluginKind("data", "data_source", "Source", "prompts and answers from the lines of a text file"),
    PluginKind("reward", "reward", "Reward", "full reward at a wanted length, less with the distance from it"),
    PluginKind("environment", "environment", "Environment", "asks again until the answer is right"),
    PluginKind(
        "evaluator",
        "evaluator",
        "Evaluator",
        "how many greedy completions contain the answer",
        dependencies=(NUMPY,),
    ),
    PluginKind("logger", "logger", "Logger", "metrics as lines of a CSV file"),
)
