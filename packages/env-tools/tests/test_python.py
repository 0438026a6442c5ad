"""An environment that is the user's own class."""

from __future__ import annotations

import asyncio

import pytest
from rl_core.errors import ConfigError
from rl_env_tools.config import PythonConfig
from rl_env_tools.python import load_environment

NIM = """
from rl_core.contracts.environment import Turn

class Guess:
    def __init__(self, secret="7"):
        self.secret = secret

    def start(self, row, seed):
        return seed

    def step(self, state, conversation):
        return Turn(done=True, reward=float(conversation[-1]["content"] == self.secret))
"""


def config(reference, **fields):
    return PythonConfig.model_validate({"name": "python", "class": reference, **fields})


def test_the_class_is_built_with_its_arguments(tmp_path):
    (tmp_path / "guess.py").write_text(NIM)
    environment = load_environment(config(f"{tmp_path}/guess.py:Guess", arguments={"secret": "9"}, workers=1))

    async def play():
        state = await environment.start({}, 3)
        return await environment.step(state, [{"role": "assistant", "content": "9"}])

    assert asyncio.run(play()).reward == 1.0
    environment.close()


def test_a_class_without_the_methods_is_refused(my_tools):
    with pytest.raises(ConfigError) as caught:
        load_environment(config(f"{my_tools}:Player"))
    assert str(caught.value) == (
        f"environment 'python': {my_tools}:Player has no method 'step'\n"
        "    an environment has start(row, seed) and step(state, conversation)"
    )


def test_arguments_that_do_not_fit_are_shown(my_tools):
    with pytest.raises(ConfigError) as caught:
        load_environment(config(f"{my_tools}:Player", arguments={"colour": "white"}))
    assert str(caught.value) == (
        f"environment 'python': {my_tools}:Player cannot be built: TypeError: Player.__init__() got an unexpected "
        "keyword argument 'colour'\n    its constructor takes environment.arguments as keywords"
    )
