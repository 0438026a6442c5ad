"""A class with plain methods runs in processes: what lives there, what ends there, and what the driver believes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.config.environment import EnvironmentConfig
from rl_core.contracts.environment import tools_of
from rl_core.contracts.generator import SamplingParams
from rl_env_tools.config import PythonConfig
from rl_env_tools.python import load_environment
from rl_rollout.conversations import Conversations
from rl_rollout.environment_calls import EnvironmentCalls, EnvironmentFailure

GAMES = str(Path(__file__).with_name("my_games.py"))
INSTEAD = "or set environment.on_error: end, which ends such conversations and counts them"


class Table:
    """Plays conversations with an environment, as rollouts do."""

    def __init__(self, kind="Game", *, timeout_s=30.0, workers=2, **fields):
        given = {"name": "python", "class": f"{GAMES}:{kind}", "step_timeout_s": timeout_s, "workers": workers}
        self.environment = load_environment(PythonConfig.model_validate(given | fields))
        self.calls = EnvironmentCalls(self.environment, name="environment 'python'", timeout_s=timeout_s, concurrency=8)

    def start(self, *names, seed=0, **row):
        states = [self.calls.start({"name": n, "__where__": n, **row}, seed, place=n) for n in names]
        return list(zip(names, states, strict=True))

    def say(self, said):
        """``[(conversation, text), …]``: what each of them is answered, or its failure's text."""
        steps = [
            self.calls.step(state, [{"role": "assistant", "content": text}], turn=1, place=name)
            for (name, state), text in said
        ]
        return self.results(steps)

    def results(self, calls):
        self.calls.wait(calls, at_most_s=100, all_of_them=True)
        return [self._failure(call) or call.result() for call in calls]

    @staticmethod
    def _failure(call):
        error = call.exception()
        assert error is None or isinstance(error, EnvironmentFailure), error
        return error and str(error).replace(GAMES, "games.py")


@pytest.fixture
def table():
    built = []

    def build(*arguments, **fields):
        built.append(Table(*arguments, **fields))
        return built[-1]

    yield build
    for one in built:
        one.calls.close()


def told(turn):
    """process, row, steps, draw"""
    return json.loads(turn.messages[0]["content"])


def test_each_conversation_keeps_its_own_state_in_a_process_that_is_not_the_drivers(table):
    game = table()
    started = game.start("a", "b", "c", "d", seed=5)
    first = [told(turn) for turn in game.say([(one, "go") for one in started])]
    second = [told(turn) for turn in game.say([(one, "go") for one in reversed(started)])][::-1]
    assert [row for _, row, _, _ in first] == [row for _, row, _, _ in second] == ["a", "b", "c", "d"]
    assert [steps for _, _, steps, _ in first + second] == [1] * 4 + [2] * 4
    processes = [process for process, _, _, _ in first]
    assert [process for process, _, _, _ in second] == processes
    assert processes[0] == processes[2] != processes[1] == processes[3], "the process with the fewest gets the next"
    assert os.getpid() not in processes
    assert tools_of(game.environment) == ({"type": "function", "function": {"name": "roll"}},)


def test_the_same_seed_repeats_a_conversation_in_whichever_process(table):
    game = table()
    started = game.start("a", "b", seed=7) + game.start("c", seed=8)
    draws = [[told(turn)[3] for turn in game.say([(one, "go") for one in started])] for _ in range(2)]
    a, b, c = zip(*draws, strict=True)
    assert a == b != c


def test_a_step_that_hangs_is_killed_and_costs_the_conversations_of_its_process_alone(table):
    game = table(timeout_s=1.0)
    a, b, c, d = game.start("row a", "row b", "row c", "row d")
    hung, lost, other = game.say([(a, "hang"), (c, "go"), (d, "go")])
    assert hung.startswith("environment 'python' took longer than 1 s in step, after turn 1 of the conversation of row")
    assert "row a (games.py:" in hung
    line = hung.partition("games.py:")[2].partition(")")[0]
    assert lost == (
        "environment 'python' has lost the conversation in step, after turn 1 of the conversation of row c: its state "
        f"was in the same process as the conversation of row a, whose step took longer than 1 s (games.py:{line})\n"
        f"    fix it, {INSTEAD}"
    )
    assert told(other)[1:3] == ["row d", 1]
    (e,) = game.start("row e")
    again, still = game.say([(e, "go"), (a, "go")])
    assert told(again)[1:3] == ["row e", 1], "the process was started again"
    assert "has lost the conversation in step" in still
    assert game.results([game.calls.end(state, place=name) for name, state in (a, b, c, d, e)]) == [None] * 5


def test_code_that_holds_pythons_lock_is_killed_too(table):
    game = table(timeout_s=1.0, workers=1)
    (spun,) = game.say([(game.start("a")[0], "spin")])
    assert "took longer than 1 s in step" in spun


def test_a_start_that_hangs_fails_alone(table):
    game = table(timeout_s=1.0, workers=1)
    (hung,) = game.start("a", hang=True)
    failures = game.results([hung[1]])
    assert failures[0].startswith("environment 'python' took longer than 1 s in start, for a (games.py:")
    (b,) = game.start("b")
    assert told(game.say([(b, "go")])[0])[1:3] == ["b", 1]


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("exit", " ended its process (exit code 3) in step, after turn 1 of the conversation of a\n"),
        (
            "forge",
            " wrote to the connection of its own process, which was ended (an answer that was not asked for) in ",
        ),
    ],
)
def test_code_that_ends_its_process_or_writes_an_answer_of_its_own_fails(table, said, failure):
    game = table(workers=1)
    a, b = game.start("a", "b")
    failed, lost = game.say([(a, said), (b, "go")])
    assert failed.startswith(f"environment 'python'{failure}")
    assert "its state was in the same process as the conversation of a, whose step " in lost


def test_what_is_no_turn_is_a_failure_with_its_true_cause(table):
    game = table(workers=1)
    where = " in step, after turn 1 of the conversation of a"
    causes = {
        "raise": rf"raised ValueError{where}: no such move (games.py:",
        "none": f"returned NoneType, not an rl_core.contracts.environment.Turn{where}",
        "nan": f"returned the reward nan{where}",
        "huge": "returned the reward 1000000000",
        "text": f"returned the reward '1', which is no number{where}",
        "number": "returned the message {'content': 5, 'role': 'user'}; a message is ",
        "surrogate": "returned the message {'content': '\\ud800', 'role': 'user'}, which is no valid Unicode",
        "endless": "returned 9,437,",
        "object": "returned what has no JSON (",
    }
    (a,) = game.start("a")
    failures = game.say([(a, said) for said in causes])
    for failure, cause in zip(failures, causes.values(), strict=True):
        assert failure.startswith(f"environment 'python' {cause}")
    (still,) = game.say([(a, "go")])
    assert told(still)[2] == len(causes) + 1, "the conversation is as its steps have left it"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ('{"turn": {"messages": [], "done": true, "reward": NaN}}', "returned the reward nan, which is not finite"),
        ('{"turn": {"messages": [], "done": true, "reward": 1%s}}' % ("0" * 400), "returned the reward 1000000"),
        ('{"turn": {"messages": [], "done": true, "reward": true}}', "returned the reward True, which is no number"),
        ('{"turn": {"messages": [], "done": 1, "reward": 0}}', "gave a turn with done=1, which is neither true nor"),
        ('{"turn": {"messages": "aa", "done": true, "reward": 0}}', "returned the messages 'aa', which are no list"),
        ('{"turn": 5}', "gave an answer that is no turn: 5 in step"),
        ("7", "gave an answer that is none, 7, in step"),
        ('{"lost": true}', "has lost the conversation in step"),
    ],
)
def test_the_driver_does_not_believe_a_process_that_replaced_what_makes_its_answers(replaced, answer, cause):
    (failure,) = replaced.say([(replaced.start("a")[0], answer)])
    assert failure.startswith(f"environment 'python' {cause}")


@pytest.fixture(scope="module")
def replaced():
    table = Table("Replaced", workers=1)
    yield table
    table.calls.close()


ACTS = ("go", "raise", "hang")


class Parrot:
    """Generator and tokenizer: a conversation says its prompt's token again and again; tokens stand for ``ACTS``."""

    def generate(self, requests, sampling):
        said = [requests.tokens[requests.sequence(i)] for i in range(len(requests))]
        count = range(len(said))
        return SequenceBatch.from_lists(
            [np.append(tokens, tokens[0]) for tokens in said],
            token_columns={
                "loss_mask": [np.append(np.zeros(len(t)), 1).astype(np.float32) for t in said],
                "sampled_logprobs": [np.zeros(len(t) + 1, np.float32) for t in said],
                "weights_version": [np.zeros(len(t) + 1, np.int32) for t in said],
            },
            sequence_columns={
                "request": np.array(count),
                "sample": np.zeros(len(said), np.int64),
                "truncated": np.zeros(len(said), bool),
                "prompt_length": np.array([len(t) for t in said]),
            },
        )

    def decode(self, tokens):
        return ACTS[tokens[0]]

    def shorten(self, text, limit):
        return text

    def encode_reply(self, messages, *, chat, ended):
        return np.array([0])


@pytest.fixture
def converse(table):
    """``converse(acts, on_error)``: sequence columns of conversations of two turns in two processes."""

    def run(acts, on_error):
        game = table(timeout_s=1.0)
        config = EnvironmentConfig(name="python", on_error=on_error, max_turns=2, step_timeout_s=1.0)
        parrot = Parrot()
        conversations = Conversations(game.calls, config=config, router=parrot, tokenizer=parrot, max_length=64)
        requests = SequenceBatch.from_lists(
            [[ACTS.index(act)] for act in acts], sequence_columns={"seed": np.arange(len(acts), dtype=np.uint64)}
        )
        rows = [{"prompt": act, "__where__": f"rows.jsonl:{n}"} for n, act in enumerate(acts, 1)]
        done = conversations.run(requests, rows, SamplingParams(n=1, max_new_tokens=1, stop_token_ids=(99,)))
        return done.batch.sequence_columns

    return run


def test_with_on_error_end_failed_and_lost_conversations_end_and_are_counted(converse):
    columns = converse(["go", "raise", "go", "go"], "end")
    assert columns["environment_failed"].tolist() == [False, True, False, False]
    columns = converse(["go", "hang", "go", "go"], "end")
    assert columns["environment_failed"].tolist() == [False, True, False, True]
    assert columns["environment_reward"].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_with_on_error_raise_the_first_failure_stops_the_run(converse):
    with pytest.raises(
        EnvironmentFailure, match=r"raised ValueError in step, after turn 1 of .* of rows\.jsonl:2: no such"
    ):
        converse(["go", "raise"], "raise")


def test_end_and_close_are_called_in_the_process(table, tmp_path):
    game = table(workers=1, arguments={"notes": str(tmp_path / "notes")})
    a, b = game.start("a", "b")
    game.say([(a, "go")])
    game.results([game.calls.end(state, place=name) for name, state in (a, b)])
    game.calls.close()
    assert (tmp_path / "notes").read_text().splitlines() == ["end of a after 1", "end of b after 0", "closed"]


def test_a_class_with_coroutines_stays_on_the_event_loop_of_the_driver(table):
    game = table("Waits")
    (turn,) = game.say([(game.start("a")[0], "go")])
    assert told(turn) == [os.getpid(), "environment"]
