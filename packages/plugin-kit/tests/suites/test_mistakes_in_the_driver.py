"""Each promise of a reward, data source, environment, evaluator and logger, broken once: only its rule fails."""

from __future__ import annotations

import pytest

LIST = "return [self._score(sample) for sample in samples]"
CLOSE = "    def _score("

REWARD = {
    "too few scores": (
        {LIST: LIST.replace("in samples", "in samples[:5]")},
        "every sample gets one finite score",
        "score returned 5 scores for 7 samples",
    ),
    "a score that is no number": (
        {LIST: 'return [float("nan") if not s.completion else self._score(s) for s in samples]'},
        "every sample gets one finite score",
        "reward of sample 3 ('') is nan, not a finite number",
    ),
    "a dict without the reward": (
        {LIST: 'return [{"length": 1.0} if s.truncated else self._score(s) for s in samples]'},
        "every sample gets one finite score",
        "the score of sample 5 is a dict without the key 'reward': {'length': 1.0}",
    ),
    "scores in another order": (
        {LIST: "return sorted(self._score(sample) for sample in samples)"},
        "scores belong to their samples",
        "sample 0 scores 0.0625, and 0.9375 in reverse order; the i-th score is that of the i-th sample",
    ),
    "scores that depend on the others": (
        {LIST: "return [self._score(sample) + (len(samples) > 1) for sample in samples]"},
        "scores belong to their samples",
        "sample 0 scores 1.125 among others and 0.125 alone; after a failure samples are scored one by one",
    ),
    "no samples": (
        {LIST: "assert samples, 'nothing to score'\n        " + LIST},
        "no samples have no scores",
        "nothing to score",
    ),
    "what close leaves behind": (
        {
            LIST: "return [self._score(sample) + len(CLOSED) for sample in samples]",
            "class MyFirstReward:": "CLOSED: list = []\n\n\nclass MyFirstReward:",
            CLOSE: "    def close(self):\n        CLOSED.append(self)\n\n" + CLOSE,
        },
        "it can be built again after it was closed",
        None,
    ),
}


@pytest.mark.parametrize("mistake", REWARD)
def test_a_reward(mistake, findings):
    changes, rule, message = REWARD[mistake]
    found = findings("reward", changes)
    assert list(found) == [rule]
    if message is None:  # the scores of a longer list
        assert found[rule].startswith("reward 'my-first': a second one in the same process scores [")
    else:
        assert found[rule] in (message, f"reward 'my-first': {message}")


ROWS = "        return rows\n"
ANSWER = '"answer": answer, "__where__": where'
DATA = {
    "a row that does not know its place": (
        {ANSWER: '"answer": answer'},
        "rows are dicts that know where they come from",
        "row 0 has no '__where__' (file:line or the like): {'prompt': '0+1=', 'completion': '1', 'answer': '1'}",
    ),
    "a value that JSON does not have": (
        {ANSWER: '"answer": {answer}, "__where__": where'},
        "rows are dicts that know where they come from",
        "row 0 holds a value that JSON does not have: Object of type set is not JSON serializable",
    ),
    "rows that are used up": (
        {
            ROWS: "        return Once(rows)\n",
            "class MyFirstSource:": (
                "class Once(list):\n    def __iter__(self):\n        while len(self) > 5:\n"
                "            yield self.pop(0)\n\n\nclass MyFirstSource:"
            ),
        },
        "rows stay where they are",
        "going through the rows twice gives other rows",
    ),
    "rows in another order each time": (
        {ROWS: "        import random\n\n        random.Random(id(self)).shuffle(rows)\n        return rows\n"},
        "loading again gives the same rows",
        "two sources with the same config give different rows, so a resumed run would differ",
    ),
    "a fingerprint of the moment": (
        {
            "        fields = self.config": "        PRINTS.append(1)\n        fields = self.config",
            "json.dumps([self._content(), fields], sort_keys=True).encode()).hexdigest()": (
                "b'').hexdigest()[:4] + str(len(PRINTS))"
            ),
            "class MyFirstSource:": "PRINTS: list = []\n\n\nclass MyFirstSource:",
        },
        "loading again gives the same rows",
        "the same rows have the fingerprints e3b01 and e3b02",
    ),
    "a report that counts nothing": (
        {'        self._report = {"rows": len(rows), "skipped": skipped}\n': ""},
        "the report counts the rows",
        "report() is {'rows': 0, 'skipped': 0} after load returned 10 rows; it counts rows and skipped",
    ),
}


@pytest.mark.parametrize("mistake", DATA)
def test_a_data_source(mistake, findings):
    changes, rule, message = DATA[mistake]
    assert findings("data", changes) == {rule: f"data source 'my-first': {message}"}


AGAIN = 'return Turn(messages=({"role": "user", "content": self.config.retry},), done=False)'
ENVIRONMENT = {
    "a reward that is no number": (
        {AGAIN: AGAIN.replace("done=False", 'done=False, reward=float("nan")')},
        "a turn has messages and a finite reward",
        "step returned the reward nan",
    ),
    "speaking for the model": (
        {AGAIN: AGAIN.replace('"user"', '"assistant"').replace("self.config.retry", '"2"')},
        "a turn has messages and a finite reward",
        "step speaks for the model: {'role': 'assistant', 'content': '2'}",
    ),
    "writing into the conversation": (
        {"        state.turns += 1\n": "        state.turns += 1\n        conversation.append({'role': 'user'})\n"}
        | {"str(conversation[-1]": "str(conversation[-2]"},
        "the conversation is not changed",
        "step changed the conversation it was given; it returns its messages",
    ),
    "one state for all": (
        {
            "return Conversation(answer": "self.state = Conversation(answer",
            ".strip())\n\n    def step": ".strip())\n        return self.state\n\n    def step",
            "        state.turns += 1\n": "        state = self.state\n        state.turns += 1\n",
        },
        "conversations do not influence each other",
        "conversation 0 goes differently while another one runs; state belongs into what start returns",
    ),
}


@pytest.mark.parametrize("mistake", ENVIRONMENT)
def test_an_environment(mistake, findings):
    changes, rule, message = ENVIRONMENT[mistake]
    assert findings("environment", changes) == {rule: f"environment 'my-first': {message}"}


def test_an_environment_that_draws_without_the_seed(findings):
    found = findings("environment", {AGAIN: AGAIN.replace("self.config.retry", "str(__import__('random').random())")})
    assert found["a seed repeats a conversation"] == (
        "environment 'my-first': one seed gives two conversations; draw whatever is random from it"
    )


HITS = '{"eval/my_first": float(np.mean(hits))}'
EVALUATOR = {
    "a metric of another section": (
        {HITS: HITS.replace("eval/", "train/")},
        "it returns finite metrics of its own section",
        "evaluate returned train/my_first; its metrics begin with 'eval/'",
    ),
    "a metric that is no number": (
        {HITS: '{"eval/my_first": float("inf")}'},
        "it returns finite metrics of its own section",
        "evaluate returned inf for the metric 'eval/my_first', not a finite number",
    ),
    "a sample that is no plain row": (
        {"sample_rows(samples[:shown], np.asarray(hits[:shown])),": "[{'reward': np.float32(1)}],"},
        "its samples are plain rows",
        "a sample holds a value that JSON does not have: Object of type float32 is not JSON serializable",
    ),
    "another result each time": (
        {HITS: '{"eval/my_first": float(len(CALLS))}', "        shown = ": "        CALLS.append(1)\n        shown = "}
        | {"class MyFirstEvaluator:": "CALLS: list = []\n\n\nclass MyFirstEvaluator:"},
        "the same seed gives the same result",
        "two evaluations with the same seed give {'eval/my_first': 3.0} and {'eval/my_first': 4.0}",
    ),
    "training": (
        {"        shown = ": "        context.models['policy'].train(None, None)\n        shown = "},
        "it trains nothing",
        "evaluate calls train of a model; it must not change any",
    ),
}


@pytest.mark.parametrize("mistake", EVALUATOR)
def test_an_evaluator(mistake, findings):
    changes, rule, message = EVALUATOR[mistake]
    assert findings("evaluator", changes) == {rule: f"evaluator 'my-first': {message}"}


START = "        self.close()\n        path = "
STOP = "if self._stage:\n            self._file.close()"
LOGGER = {
    "a second stage": (
        {START: "        assert not self._stage, 'started already'\n" + START},
        "a run is logged from start to close",
        "start raised AssertionError: started already",
    ),
    "a step without metrics": (
        {"        self._write((self._stage": "        next(iter(metrics))\n        self._write((self._stage"},
        "metrics may come and go",
        "log(step, {}) raised StopIteration: ",
    ),
    "closing twice": (
        {START: START.replace("self.close()", STOP), "        if self._file is not None:\n": "        if True:\n"},
        "closing twice or without a start is fine",
        "close() without start() raised AttributeError: 'NoneType' object has no attribute 'close'",
    ),
    "a file that begins anew": (
        {'path.open("a"': 'path.open("w"'},
        "a resumed run loses nothing that was logged",
        "a resumed run overwrites metrics.csv; files are appended to, never truncated",
    ),
}


@pytest.mark.parametrize("mistake", LOGGER)
def test_a_logger(mistake, findings):
    changes, rule, message = LOGGER[mistake]
    assert findings("logger", changes) == {rule: f"logger 'my-first': {message}"}
