"""Environments as a user writes them; the tests load this file by its path."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time

from rl_core.contracts.environment import Turn


class Game:
    """Counts its conversation's steps; what the model says decides what else happens."""

    tools = ({"type": "function", "function": {"name": "roll"}},)

    def __init__(self, notes=""):
        self.notes = notes

    def start(self, row, seed):
        if row.get("hang"):
            time.sleep(600)
        return {"steps": 0, "dice": random.Random(seed), "row": row.get("name")}

    def step(self, state, conversation):
        state["steps"] += 1
        said = conversation[-1]["content"]
        act = getattr(self, f"_{said}", None)
        if act is not None:
            return act()
        told = [os.getpid(), state["row"], state["steps"], state["dice"].random()]
        return Turn(messages=[{"role": "user", "content": json.dumps(told)}], done=False, reward=0.5)

    def end(self, state):
        self._note(f"end of {state['row']} after {state['steps']}")

    def close(self):
        self._note("closed")

    def _note(self, text):
        if self.notes:
            with open(self.notes, "a") as file:
                file.write(text + "\n")

    def _hang(self):
        time.sleep(600)

    def _spin(self):
        return 10**10**10

    def _exit(self):
        os._exit(3)

    def _raise(self):
        raise ValueError("no such move")

    def _none(self):
        return None

    def _nan(self):
        return Turn(reward=float("nan"))

    def _huge(self):
        return Turn(reward=10**400)

    def _text(self):
        return Turn(reward="1")

    def _number(self):
        return Turn(messages=[{"role": "user", "content": 5}])

    def _surrogate(self):
        return Turn(messages=[{"role": "user", "content": "\ud800"}])

    def _endless(self):
        return Turn(messages=[{"role": "user", "content": "a" * (9 << 20)}])

    def _object(self):
        return Turn(messages=[{"role": "user", "content": "a", "file": sys}])

    def _forge(self):
        """Write an answer of its own into every socket it finds, and go on."""
        body = json.dumps({"value": {"turn": {"messages": [], "done": True, "reward": 99.0}}}).encode()
        for descriptor in range(3, 64):
            try:
                with socket.socket(fileno=os.dup(descriptor)) as found:
                    found.sendall(b"\x02" + len(body).to_bytes(8, "big") + body)
            except OSError:
                continue
        return Turn(done=True)


class Replaced(Game):
    """Takes the place of what makes its answers JSON: the model's text is the answer."""

    def start(self, row, seed):
        from rl_env_tools import python

        dumps = json.dumps
        python.turn_as_json = lambda turn: turn
        json.dumps = lambda value, **options: dumps(value)

    def step(self, state, conversation):
        return json.loads(conversation[-1]["content"])


class Waits:
    """Coroutines."""

    async def start(self, row, seed):
        return threading.current_thread().name

    async def step(self, state, conversation):
        return Turn(messages=[{"role": "user", "content": json.dumps([os.getpid(), state])}], done=True)
