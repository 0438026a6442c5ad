"""The environment ``python``: an instance of the user's own class."""

from __future__ import annotations

from rl_core.contracts.environment import Environment
from rl_core.errors import ConfigError, RLError
from rl_core.functions import load_function

from rl_env_tools.config import PythonConfig


def load_environment(config: PythonConfig) -> Environment:
    """``Class(**arguments)``, which serves as the environment itself.

    Raises:
        ConfigError: the class cannot be found or built, or lacks a method.
    """
    reference = config.environment_class
    build = load_function(reference)
    try:
        environment = build(**config.arguments)
    except RLError:
        raise
    except Exception as error:
        raise ConfigError(
            f"environment {config.name!r}: {reference} cannot be built: {type(error).__name__}: {error}\n"
            "    its constructor takes environment.arguments as keywords"
        ) from error
    lacking = [name for name in ("start", "step") if not callable(getattr(environment, name, None))]
    if lacking:
        raise ConfigError(
            f"environment {config.name!r}: {reference} has no method {' and no '.join(map(repr, lacking))}\n"
            "    an environment has start(row, seed) and step(state, conversation)"
        )
    return environment
