"""Calls over a socket, both ends in this process."""

import os
import threading
from multiprocessing import AuthenticationError

import numpy as np
import pytest
from rl_core.cluster import lines
from rl_core.cluster.lines import Address, Line, LineEnded, Raised
from rl_core.cluster.work_thread import WorkThread
from rl_core.errors import DataError

PATIENCE_S = 120


class Unsendable(Exception):
    def __reduce__(self):
        raise TypeError("not this one")


class Unreadable:
    """Can be sent and not read."""

    def __reduce__(self):
        return int, ("no number",)


class OneWay(Exception):
    """Can be pickled and not read again."""

    def __init__(self, one, other):
        super().__init__(one)


class Host:
    def echo(self, *values):
        return values

    def thread(self):
        return threading.current_thread()

    def refuse(self):
        raise DataError("rows.jsonl:3: bad")

    def raise_unsendable(self):
        raise Unsendable

    def raise_one_way(self):
        raise OneWay("one", "other")

    def leave(self):
        raise SystemExit(3)

    def give_unreadable(self):
        return Unreadable()

    def give_lock(self):
        return threading.Lock()


@pytest.fixture
def work():
    host = Host()
    return WorkThread(lambda method, args: getattr(host, method)(*args))


@pytest.fixture
def line(work):
    opened = Line(work.open_line(), "a1")
    yield opened
    opened.close()


def result(call):
    return call.future.result(PATIENCE_S)


def test_arrays_of_any_size_come_back_as_they_were_and_read_only(line):
    arrays = [np.arange(n, dtype=np.int32) for n in (0, 3, 5_000_000)]
    found = result(line.ask("echo", {"arrays": arrays}, "text", arrays[1][::2]))
    assert [a.tolist() == b.tolist() and a.dtype == b.dtype for a, b in zip(found[0]["arrays"], arrays, strict=True)]
    assert found[1] == "text"
    assert found[2].tolist() == [0, 2]
    assert not found[0]["arrays"][1].flags.writeable


def test_what_is_defined_here_can_be_sent(line):
    assert result(line.ask("echo", lambda x: x + 1))[0](2) == 3


def test_calls_are_answered_in_order_from_all_threads(line):
    answers = {}

    def ask(name):
        calls = [line.ask("echo", name, i) for i in range(50)]
        answers[name] = [result(call) for call in calls]

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: [(name, i) for i in range(50)] for name in "abc"}


def test_exceptions_bring_themselves_and_their_traceback(line):
    with pytest.raises(Raised) as caught:
        result(line.ask("refuse"))
    error, text = caught.value.args
    assert type(error) is DataError
    assert str(error) == "rows.jsonl:3: bad"
    assert "in refuse" in text
    for method in ("raise_unsendable", "raise_one_way"):
        with pytest.raises(Raised) as caught:
            result(line.ask(method))
        assert caught.value.args[0] is None
        assert f"in {method}" in caught.value.args[1]
    with pytest.raises(Raised) as caught:
        result(line.ask("leave"))
    assert type(caught.value.args[0]) is SystemExit
    with pytest.raises(Raised) as caught:
        result(line.ask("give_lock"))
    assert str(caught.value.args[0]) == "cannot pickle '_thread.lock' object"
    with pytest.raises(TypeError, match=r"^cannot pickle '_thread.lock' object$"):
        line.ask("echo", threading.Lock())
    for call in (line.ask("echo", Unreadable()), line.ask("give_unreadable")):
        with pytest.raises(Raised) as caught:
            result(call)
        assert str(caught.value.args[0]) == "invalid literal for int() with base 10: 'no number'"
    assert result(line.ask("echo", 1)) == (1,), "the line is as good as before"


def test_whoever_hangs_up_ends_the_calls_under_way_and_further_ones(work, line):
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: work.run(lambda: entered.set() or leave.wait(PATIENCE_S)))
    thread.start()
    entered.wait(PATIENCE_S)
    waiting = line.ask("echo", 1)
    line.close()
    for call in (waiting, line.ask("echo", 2)):
        with pytest.raises(LineEnded):
            result(call)
    leave.set()
    thread.join()
    assert work.run(lambda: "goes on") == "goes on"
    assert result(Line(work.open_line(), "a1").ask("echo", 3)) == (3,), "another driver may come"


def test_another_driver_takes_the_place_of_one_that_leaves_at_the_same_moment(work, line):
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: work.run(lambda: entered.set() or leave.wait(PATIENCE_S)))
    thread.start()
    entered.wait(PATIENCE_S)
    other = Line(work.open_line(), "a1")
    line.close()
    leave.set()
    thread.join()
    assert work.run(lambda: "goes on") == "goes on"
    assert result(other.ask("echo", 1)) == (1,)


def test_nobody_without_the_secret_gets_a_line(work):
    address = work.open_line()
    with pytest.raises(AuthenticationError):
        Line(Address(address.place, b"guessed"), "a1")
    with pytest.raises((ConnectionError, EOFError)):
        Line(address, "a1")  # one attempt
    assert address.secret.hex() not in repr(address)
    assert "secret" not in repr(address)


def test_processes_of_other_users_are_refused_and_do_not_take_the_drivers_place(work, monkeypatch):
    users = iter([os.getuid() + 1, os.getuid()])
    monkeypatch.setattr(lines, "_user_of", lambda connection: next(users))
    address = work.open_line()
    with pytest.raises((ConnectionError, EOFError)):
        Line(address, "another user's")
    assert result(Line(address, "a1").ask("echo", 1)) == (1,)


def test_a_driver_that_does_not_come_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(lines, "_CONNECT_S", 0.1)
    before = set(threading.enumerate())
    address = lines.wait_for_driver(lambda connection: pytest.fail("nobody came"))
    for waiting in set(threading.enumerate()) - before:  # none, where its time was over at once
        waiting.join(PATIENCE_S)
    with pytest.raises(OSError, match=r"refused|No such file"):
        Line(address, "a1")


def test_jobs_run_in_one_thread_whoever_asks_and_from_inside_at_once(work, line):
    own = work.run(threading.current_thread)
    assert own.name == "work"
    assert work.run(lambda: work.run(threading.current_thread)) is own
    inside = []
    work._call = lambda method, args: inside.append(threading.current_thread())
    result(line.ask("anything"))
    assert inside == [own]
    with pytest.raises(KeyError):
        work.run(lambda: {}["missing"])
