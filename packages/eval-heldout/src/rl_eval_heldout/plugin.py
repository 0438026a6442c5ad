"""Components of this package, as references; imported at discovery, so it stays light."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_evaluators() -> list[Component]:
    """Held-out loss and held-out accuracy."""
    return [
        Component(
            kind="evaluator",
            name="loss",
            factory="rl_eval_heldout.loss:HeldOutLoss",
            config="rl_eval_heldout.config:LossConfig",
            summary="The algorithm's own metrics on held-out examples.",
            needs=("eval_data",),
        ),
        Component(
            kind="evaluator",
            name="accuracy",
            factory="rl_eval_heldout.accuracy:Accuracy",
            config="rl_eval_heldout.config:AccuracyConfig",
            summary="Fraction of held-out prompts whose completion reaches a reward.",
            needs=("generator", "rewards", "eval_data"),
        ),
    ]
