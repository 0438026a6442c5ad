"""Conversations over small real parts: a generator of letters, a tokenizer of letters, environments of a few lines."""

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.config.environment import EnvironmentConfig
from rl_core.contracts.environment import Turn
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import DataError, RLError
from rl_rollout.conversations import Conversations
from rl_rollout.environment_calls import EnvironmentCalls

END = ord(".")


class Letters:
    """A token per character; chat replies are wrapped in ``<…>``, which closes a turn that is open with a dot."""

    def decode(self, tokens):
        return "".join(map(chr, tokens)).rstrip(".")

    def encode_reply(self, messages, *, chat, ended):
        text = "".join(m["content"] for m in messages)
        text = ("" if ended else ".") + f"<{text}>" if chat else text
        return np.array([ord(c) for c in text], np.int64)

    def shorten(self, text, max_tokens):
        return text[:max_tokens]


class Writer:
    """A generator that writes a letter drawn from its request's seed, then a dot; ``x`` prompts never end.

    Its weights have a version that grows with every call, and its log-probs are minus the number of tokens read.
    """

    def __init__(self):
        self.calls = []

    def generate(self, requests, sampling):
        self.calls.append((len(requests), sampling.n))
        tokens, mask, logprobs, versions = [], [], [], []
        rows = [(i, k) for i in range(len(requests)) for k in range(sampling.n)]
        for i, k in rows:
            prompt = requests.tokens[requests.sequence(i)]
            draw = np.random.default_rng([int(requests.sequence_columns["seed"][i]), k]).integers(26)
            written = [ord("a") + draw] + ([END] if prompt[0] != ord("x") else [])
            tokens.append(np.concatenate([prompt, written]))
            mask.append(np.concatenate([np.zeros(len(prompt)), np.ones(len(written))]).astype(np.float32))
            scores = [-float(len(prompt) + n) for n in range(len(written))]
            logprobs.append(np.concatenate([np.zeros(len(prompt)), scores]).astype(np.float32))
            versions.append(np.full(len(tokens[-1]), len(self.calls), np.int32))
        return SequenceBatch.from_lists(
            tokens,
            token_columns={"loss_mask": mask, "sampled_logprobs": logprobs, "weights_version": versions},
            sequence_columns={
                "request": np.array([i for i, _ in rows]),
                "sample": np.array([k for _, k in rows]),
                "truncated": np.array([chr(requests.tokens[requests.offsets[i]]) == "x" for i, _ in rows]),
                "prompt_length": requests.lengths[[i for i, _ in rows]],
            },
        )


class Counts:
    """Says the number of turns so far and ends with the row's; every turn is worth a quarter."""

    def start(self, row, seed):
        return {"turns": row.get("turns", 2), "taken": 0}

    def step(self, state, conversation):
        state["taken"] += 1
        done = state["taken"] == state["turns"]
        return Turn([{"role": "tool", "content": str(state["taken"])}], done=done, reward=0.25)


class World:
    """Conversations with an environment, and what its generator was asked."""

    def __init__(self, environment, *, max_length=64, tokenizer=None, **fields):
        self.writer = Writer()
        config = EnvironmentConfig(name="world", **fields)
        self.calls = EnvironmentCalls(
            environment,
            name="environment 'world' (test)",
            timeout_s=config.step_timeout_s,
            concurrency=config.concurrency,
        )
        self.conversations = Conversations(
            self.calls,
            config=config,
            router=self.writer,
            tokenizer=tokenizer or Letters(),
            max_length=max_length,
        )

    def run(self, rows, *, n=1, seeds=None):
        rows = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
        texts = [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"] for row in rows]
        seeds = np.arange(10, 10 + len(rows)) if seeds is None else seeds
        requests = SequenceBatch.from_lists(
            [[ord(c) for c in text] for text in texts], sequence_columns={"seed": np.array(seeds, np.uint64)}
        )
        sampling = SamplingParams(n=n, max_new_tokens=2, stop_token_ids=(END,))
        return self.conversations.run(requests, rows, sampling)


def text(batch, index=0):
    return "".join(map(chr, batch.tokens[batch.sequence(index)]))


def test_turns_and_replies_become_one_sequence_with_the_replies_masked_out():
    done = World(Counts()).run([{"prompt": "go", "turns": 3}])
    batch = done.batch
    assert text(batch)[:2] + "".join(c if not c.isalpha() else "_" for c in text(batch)[2:]) == "go_.1_.2_."
    assert batch.token_columns["loss_mask"].tolist() == [0, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    assert batch.token_columns["sampled_logprobs"].tolist() == [0, 0, -2, -3, 0, -5, -6, 0, -8, -9]
    assert batch.token_columns["weights_version"].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 3, 3]
    columns = {name: column.tolist() for name, column in batch.sequence_columns.items()}
    assert columns == {
        "request": [0],
        "sample": [0],
        "truncated": [False],
        "prompt_length": [2],
        "turns": [3],
        "environment_tokens": [2],
        "environment_reward": [0.75],
        "environment_failed": [False],
    }
    assert [m["role"] for m in done.messages[0]] == ["assistant", "tool"] * 3, "what is said last is kept as text"
    assert done.messages[0][-1]["content"] == "3"


def test_a_conversation_of_one_turn_is_a_single_turn_rollout():
    world, plain = World(Counts()), Writer()
    rows = [{"prompt": p, "turns": 1} for p in ("a", "bc", "d")]
    batch = world.run(rows, n=4).batch
    requests = SequenceBatch.from_lists(
        [[97], [98, 99], [100]], sequence_columns={"seed": np.array([10, 11, 12], np.uint64)}
    )
    single = plain.generate(requests, SamplingParams(n=4, max_new_tokens=2, stop_token_ids=(END,)))
    assert world.writer.calls == plain.calls == [(3, 4)], "a group starts from one request"
    assert batch.tokens.tolist() == single.tokens.tolist()
    for name, column in single.token_columns.items():
        assert batch.token_columns[name].tolist() == column.tolist()
        assert batch.token_columns[name].dtype == column.dtype
    for name, column in single.sequence_columns.items():
        assert batch.sequence_columns[name].tolist() == column.tolist()


def test_a_conversation_depends_on_its_own_prompt_and_seed_only():
    rows = [{"prompt": p, "turns": t} for p, t in (("a", 3), ("b", 1), ("c", 4), ("d", 2))]
    together = World(Counts()).run(rows, n=3).batch
    for index, row in enumerate(rows):
        alone = World(Counts()).run([row], n=3, seeds=[10 + index]).batch
        for sample in range(3):
            assert text(alone, sample) == text(together, 3 * index + sample)
    first = [text(together, i) for i in range(3)]
    assert len(set(first)) == 3, "samples of a group differ"
    assert text(together)[1] != text(together)[4], "and so do the turns of a conversation"


def test_a_chat_is_continued_where_the_template_lets_the_model_write_again():
    chat = {"prompt": [{"role": "user", "content": "hi"}]}
    assert text(World(Counts()).run([chat]).batch)[3:7] == ".<1>"
    cut = {"prompt": [{"role": "user", "content": "x"}]}
    world = World(Counts(), on_long_turn="answer")
    batch = world.run([cut]).batch
    assert text(batch)[2:6] == ".<1>", "a turn that did not end is closed, and the model does not learn that"
    assert batch.token_columns["loss_mask"].tolist() == [0, 1, 0, 0, 0, 0, 1]


def test_an_end_token_that_begins_the_next_turn_is_there_once():
    class BeginsWithTheEnd(Letters):
        """A turn begins with a dot, and nothing else ends the one before, as in GLM's template."""

        def encode_reply(self, messages, *, chat, ended):
            return np.array([ord(c) for c in "." + "".join(m["content"] for m in messages) + ":"])

    chat, cut = ({"prompt": [{"role": "user", "content": one}]} for one in ("hi", "x"))
    batch = World(Counts(), tokenizer=BeginsWithTheEnd()).run([chat]).batch
    assert text(batch)[3:6] == ".1:"
    assert batch.token_columns["loss_mask"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    batch = World(Counts(), tokenizer=BeginsWithTheEnd(), on_long_turn="answer").run([cut]).batch
    assert text(batch)[2:5] == ".1:", "a turn that did not end needs it"
    assert batch.token_columns["loss_mask"].tolist() == [0, 1, 0, 0, 0, 1]


def test_a_turn_that_reaches_its_limit_ends_the_conversation_unanswered():
    done = World(Counts()).run(["x"])
    assert (text(done.batch)[0], len(done.batch.tokens)) == ("x", 2)
    assert done.batch.sequence_columns["truncated"].tolist() == [True]
    assert done.batch.sequence_columns["environment_reward"].tolist() == [0.0]
    assert len(done.messages[0]) == 1


def test_turns_run_out_and_the_last_one_is_still_answered():
    done = World(Counts(), max_turns=2).run([{"prompt": "a", "turns": 9}])
    columns = done.batch.sequence_columns
    assert (columns["turns"][0], columns["truncated"][0], columns["environment_reward"][0]) == (2, True, 0.5)
    assert done.batch.token_columns["loss_mask"].tolist() == [0, 1, 1, 0, 1, 1], "its answer is read by nobody"


def test_the_context_ends_a_conversation_before_a_turn_that_might_not_fit():
    # "a" + (2 + 1) per answered turn + 2 for a full turn: after two replies 1 + 3 + 3 + 2 = 9.
    for room, turns in ((9, 3), (8, 2)):
        done = World(Counts(), max_length=room).run([{"prompt": "a", "turns": 9}])
        columns = done.batch.sequence_columns
        assert (columns["turns"][0], columns["truncated"][0]) == (turns, True)
        assert len(done.batch.tokens) <= room


def test_long_messages_are_cut():
    class Talks(Counts):
        def step(self, state, conversation):
            return Turn([{"role": "tool", "content": "0123456789"}], done=len(conversation) > 3)

    done = World(Talks(), max_environment_tokens=4).run(["a"])
    assert text(done.batch)[3:7] == "0123"
    assert done.messages[0][1]["content"] == "0123"


def test_the_environment_sees_the_whole_conversation_and_a_seed_of_its_own():
    seen = {}

    class Looks(Counts):
        def start(self, row, seed):
            seen.setdefault("seeds", []).append(seed)
            return super().start(row, seed)

        def step(self, state, conversation):
            seen["conversation"] = conversation
            return super().step(state, conversation)

    World(Looks(), concurrency=1).run(["a"], n=3)
    assert [m["role"] for m in seen["conversation"]] == ["user", "assistant", "tool", "assistant"]
    assert seen["conversation"][0] == {"role": "user", "content": "a"}
    first = list(seen["seeds"])
    World(Looks(), concurrency=1).run(["a"], n=3)
    assert len(set(first)) == 3
    assert sorted(seen["seeds"][3:]) == sorted(first), "a resumed run repeats what is random"


def test_a_slow_conversation_does_not_hold_up_the_others():
    others_done = threading.Event()

    class OneIsSlow(Counts):
        def step(self, state, conversation):
            turn = super().step(state, conversation)
            if conversation[0]["content"] == "slow":
                assert others_done.wait(60)
            elif turn.done:
                others_done.set()
            return turn

    world = World(OneIsSlow(), patience_s=0.01)
    done = world.run([{"prompt": "slow", "turns": 2}, {"prompt": "b", "turns": 5}])
    assert done.batch.sequence_columns["turns"].tolist() == [2, 5]
    assert world.writer.calls[:5] == [(2, 1), (1, 1), (1, 1), (1, 1), (1, 1)]
    assert text(done.batch) == text(World(Counts()).run([{"prompt": "slow", "turns": 2}]).batch)


def test_coroutines_run_side_by_side():
    class Meets(Counts):
        """Every step waits until all four conversations are in it."""

        def __init__(self):
            self.arrived = 0

        async def start(self, row, seed):
            return super().start(row, seed)

        async def step(self, state, conversation):
            self.arrived += 1
            while self.arrived % 4:
                await asyncio.sleep(0)
            return super().step(state, conversation)

    done = World(Meets(), patience_s=None).run(list("abcd"))
    assert done.batch.sequence_columns["turns"].tolist() == [2, 2, 2, 2]


def test_no_more_calls_run_at_once_than_allowed():
    class Counting(Counts):
        running, most = 0, 0
        lock = threading.Lock()

        def step(self, state, conversation):
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.005)
            with self.lock:
                self.running -= 1
            return super().step(state, conversation)

    environment = Counting()
    World(environment, concurrency=3).run(list("abcdefgh"))
    assert environment.most <= 3


class Breaks(Counts):
    def step(self, state, conversation):
        if conversation[0]["content"] == "b" and state["taken"] == 1:
            raise ValueError("no such\nfile")
        return super().step(state, conversation)


def test_an_exception_names_the_environment_the_turn_the_row_and_the_line():
    with pytest.raises(RLError) as caught:
        World(Breaks()).run(["a", {"prompt": "b", "__where__": "rows.jsonl:7"}])
    source = Path(__file__).read_text().splitlines()
    line = next(i for i, row in enumerate(source, 1) if "no such\\nfile" in row)
    assert str(caught.value) == (
        "environment 'world' (test) raised ValueError in step, after turn 2 of the conversation of rows.jsonl:7: "
        f"no such file ({__file__}:{line})\n"
        "    fix it, or set environment.on_error: end, which ends such conversations and counts them"
    )


def test_a_failed_conversation_can_be_kept_as_it_is_and_counted():
    done = World(Breaks(), on_error="end").run(["a", "b"])
    columns = {name: column.tolist() for name, column in done.batch.sequence_columns.items()}
    assert columns["environment_failed"] == [False, True]
    assert columns["truncated"] == [False, True]
    assert columns["turns"] == [2, 2]
    assert columns["environment_reward"] == [0.5, 0.25]


@pytest.mark.parametrize("kind", ["thread", "coroutine", "coroutine that refuses to be cancelled"])
def test_a_call_that_hangs_is_given_up(kind):
    release = threading.Event()

    class HangsInThread(Counts):
        def step(self, state, conversation):
            release.wait(120)
            return super().step(state, conversation)

    class HangsInCoroutine(Counts):
        async def step(self, state, conversation):
            try:
                await asyncio.sleep(120)
            except asyncio.CancelledError:
                if "refuses" in kind:
                    await asyncio.sleep(120)
                raise

    environment = HangsInThread() if kind == "thread" else HangsInCoroutine()
    done = World(environment, step_timeout_s=0.5, on_error="end").run(["a"])
    assert done.batch.sequence_columns["environment_failed"].tolist() == [True]
    with pytest.raises(RLError) as caught:
        World(environment, step_timeout_s=0.5).run(["a"])
    assert str(caught.value) == (
        "environment 'world' (test) took longer than 0.5 s in step, after turn 1 of the conversation of a data row\n"
        "    raise environment.step_timeout_s, or set environment.on_error: end, which ends such conversations and "
        "counts them"
    )
    release.set()


def test_a_coroutine_that_blocks_the_event_loop_is_reported():
    release = threading.Event()

    class Blocks(Counts):
        async def step(self, state, conversation):
            release.wait(120)

    with pytest.raises(RLError) as caught:
        World(Blocks(), step_timeout_s=0.5).run(["a", "b"])
    release.set()
    assert str(caught.value) == (
        "environment 'world' (test): one of its coroutines has held the event loop for more than 0.5 s, so that no "
        "other conversation goes on\n    await what takes long (asyncio.sleep, an asynchronous client), or write the "
        "method without async"
    )


def test_errors_meant_for_the_user_stop_the_run_whatever_the_policy():
    class Lacks(Counts):
        def start(self, row, seed):
            raise DataError(f"{row['__where__']}: there is no 'answer'")

    with pytest.raises(DataError, match=r"^rows.jsonl:3: there is no 'answer'$"):
        World(Lacks(), on_error="end").run([{"prompt": "a", "__where__": "rows.jsonl:3"}])


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        (
            {"done": True},
            "step returned dict, not a Turn\n    return rl_core.contracts.environment.Turn(…)",
        ),
        (
            Turn([{"role": "tool", "content": 3}], done=False),
            "step returned the message {'role': 'tool', 'content': 3}\n"
            "    a message is {'role': 'tool', 'content': 'text'}",
        ),
        (
            Turn(["so?"], done=False),
            "step returned the message 'so?'\n    a message is {'role': 'tool', 'content': 'text'}",
        ),
        (Turn(reward="one"), "step returned the reward 'one', which is no number"),
    ],
)
def test_what_is_no_turn_is_the_environments_fault(turn, problem):
    class Says(Counts):
        def step(self, state, conversation):
            return turn

    with pytest.raises(RLError) as caught:
        World(Says(), on_error="end").run(["a"])
    assert str(caught.value) == f"environment 'world' (test), a data row: {problem}"


@pytest.mark.parametrize("reward", [float("nan"), float("-inf")])
def test_a_reward_that_is_not_finite_is_a_failure_like_an_exception(reward):
    class Says(Counts):
        def step(self, state, conversation):
            return Turn(reward=reward)

    with pytest.raises(RLError) as caught:
        World(Says()).run(["a"])
    assert str(caught.value) == (
        f"environment 'world' (test), a data row: step returned the reward {reward}\n    fix it, or set "
        "environment.on_error: end, which ends such conversations and counts them"
    )
    columns = World(Says(), on_error="end").run(["a"]).batch.sequence_columns
    assert (columns["environment_failed"].tolist(), columns["environment_reward"].tolist()) == ([True], [0.0])


def test_an_environment_that_says_nothing_and_goes_on_is_refused():
    class Silent(Counts):
        def step(self, state, conversation):
            return Turn(done=False)

    with pytest.raises(RLError) as caught:
        World(Silent()).run(["a"])
    assert str(caught.value) == (
        "environment 'world' (test) said nothing after turn 1 of the conversation of a data row, and did not end it\n"
        "    return a Turn with messages, or with done=True"
    )


def test_every_conversation_is_ended_once_however_it_ended():
    ended = []

    class Holds(Breaks):
        def start(self, row, seed):
            return {**super().start(row, seed), "name": row["prompt"]}

        async def end(self, state):
            ended.append(state["name"])

        def close(self):
            ended.append("closed")

    world = World(Holds(), on_error="end")
    world.run(["a", "b", "x"])
    world.calls.close()
    assert sorted(ended[:-1]) == ["a", "b", "x"]
    assert ended[-1] == "closed"
    with pytest.raises(RLError, match="no such file"):
        World(Holds()).run(["c", "b"])
    assert sorted(ended[4:]) == ["b", "c"], "also where a failure stops the run"
