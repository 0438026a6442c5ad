"""Components of this package, as references; imported at discovery, so it stays light."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_rewards() -> list[Component]:
    """Rewards that follow a rule: equality, a pattern, a number, or a function of the user's."""
    return [
        Component(
            kind="reward",
            name="exact_match",
            factory="rl_reward_rule.exact_match:ExactMatch",
            config="rl_reward_rule.config:ExactMatchConfig",
            summary="1 where the completion (or an extract of it) equals the row's answer.",
        ),
        Component(
            kind="reward",
            name="regex",
            factory="rl_reward_rule.regex:Regex",
            config="rl_reward_rule.config:RegexConfig",
            summary="1 where the completion matches a regular expression.",
        ),
        Component(
            kind="reward",
            name="numeric",
            factory="rl_reward_rule.numeric:Numeric",
            config="rl_reward_rule.config:NumericConfig",
            summary="1 where the completion's last number equals the row's answer.",
        ),
        Component(
            kind="reward",
            name="function",
            factory="rl_reward_rule.function:FunctionReward",
            config="rl_reward_rule.config:FunctionConfig",
            summary="Scores from your own Python function, sync or async.",
        ),
    ]
