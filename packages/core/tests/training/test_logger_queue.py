"""A logger in its own thread: whatever it does, the caller goes on, and what is lost is counted."""

import threading
import time

import pytest
from rl_core.contracts.logger import RunInfo
from rl_core.training.logger_group import LoggerGroup
from rl_core.training.logger_queue import LoggerQueue

INFO = RunInfo("demo", "/nowhere", "train", ("train",), total_steps=9, first_step=1, config={})


class Keeps:
    close_timeout_s = 5.0

    def __init__(self):
        self.calls = []

    def start(self, info):
        self.calls.append(("start", info.stage))

    def log(self, step, metrics):
        self.calls.append((step, dict(metrics)))

    def log_samples(self, step, rows):
        self.calls.append((step, list(rows)))

    def ended(self, status):
        self.calls.append(("ended", status))

    def close(self):
        self.calls.append("close")


class Hangs(Keeps):
    """As with a server that accepts a connection and never answers."""

    close_timeout_s = 0.2

    def __init__(self):
        super().__init__()
        self.released = threading.Event()

    def log(self, step, metrics):
        self.released.wait(60)


class Refused(Keeps):
    """As with a server that is down until ``works`` is set."""

    def __init__(self):
        super().__init__()
        self.works = threading.Event()
        self.tried = 0

    def log(self, step, metrics):
        self.tried += 1
        if not self.works.is_set():
            raise ConnectionRefusedError(111, "Connection refused")
        super().log(step, metrics)


def until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def group(one, **options):
    kept = Keeps()
    return LoggerGroup([("file", kept), ("remote", LoggerQueue("remote", one, **options))]), kept


def test_calls_arrive_in_order_and_the_end_waits_for_them():
    remote = Keeps()
    loggers, _ = group(remote)
    loggers.start(INFO)
    for step in (1, 2):
        loggers.log(step, {"train/loss": 0.5})
        loggers.log_samples(step, [{"prompt": "1+1="}])
    loggers.close()
    assert remote.calls == [
        ("start", "train"),
        (1, {"train/loss": 0.5}),
        (1, [{"prompt": "1+1="}]),
        (2, {"train/loss": 0.5}),
        (2, [{"prompt": "1+1="}]),
        ("ended", "finished"),
        "close",
    ]


def test_a_logger_that_hangs_does_not_hold_the_loop_and_what_it_loses_is_counted(caplog):
    remote = Hangs()
    loggers, kept = group(remote, size=3)
    began = time.monotonic()
    for step in range(1, 11):
        loggers.log(step, {"train/loss": 0.5})
    loggers.close()
    assert time.monotonic() - began < 5
    assert [step for step, _ in kept.calls[:10]] == list(range(1, 11))
    assert kept.calls[9] == (10, {"train/loss": 0.5, "run/log_calls_lost": 6.0})
    assert caplog.messages[0] == "logger 'remote' is behind by 3 calls; further ones are lost; training goes on"
    assert caplog.messages[1] == "logger 'remote' has not ended in time: the run does not wait for its last calls"
    # The seven that found no room, the three that waited, and the end.
    assert caplog.messages[2:] == ["logger 'remote': 11 calls are lost"]
    remote.released.set()


def test_a_server_that_comes_back_receives_what_waited(caplog):
    remote = Refused()
    loggers, _ = group(remote, first_retry_s=0.01)
    for step in (1, 2, 3):
        loggers.log(step, {"train/loss": float(step)})
    until(lambda: remote.tried > 2)
    remote.works.set()
    loggers.close()
    assert [call for call in remote.calls if isinstance(call[0], int)] == [
        (s, {"train/loss": float(s)}) for s in (1, 2, 3)
    ]
    assert caplog.messages == [
        "logger 'remote' failed and is tried again: ConnectionRefusedError: [Errno 111] Connection refused; "
        "training goes on"
    ]


def test_a_server_that_stays_away_holds_the_end_no_longer_than_the_logger_says(caplog):
    remote = Refused()
    remote.close_timeout_s = 0.3
    loggers, _ = group(remote, first_retry_s=0.01)
    loggers.log(1, {"train/loss": 0.5})
    began = time.monotonic()
    loggers.close()
    assert 0.2 < time.monotonic() - began < 5
    assert caplog.messages[-1] == "logger 'remote': 2 calls are lost"


def test_a_call_that_fails_for_good_is_lost_and_later_ones_are_made(caplog):
    class Fails(Keeps):
        def log(self, step, metrics):
            if step < 3:
                raise ValueError(f"no step {step}")
            super().log(step, metrics)

    remote = Fails()
    loggers, _ = group(remote)
    for step in (1, 2, 3):
        loggers.log(step, {})
    loggers.close()
    assert remote.calls[0] == (3, {})
    assert caplog.messages == [
        "logger 'remote' failed: ValueError: no step 1; training goes on",
        "logger 'remote': 2 calls are lost",
    ]


def test_a_logger_that_cannot_start_is_dropped(caplog):
    class Fails(Keeps):
        def start(self, info):
            raise ValueError("no such project")

    remote = Fails()
    loggers, kept = group(remote)
    loggers.start(INFO)
    until(lambda: caplog.messages)
    loggers.log(1, {})
    loggers.close()
    assert remote.calls == []
    assert (1, {"run/log_calls_lost": 1.0}) in kept.calls
    assert caplog.messages[0] == "logger 'remote' failed and is dropped: ValueError: no such project; training goes on"


@pytest.mark.parametrize(
    ("error", "status"), [(None, "finished"), (KeyboardInterrupt(), "interrupted"), (ValueError(), "failed")]
)
def test_a_logger_that_uploads_is_told_how_the_run_ended(error, status):
    remote = Keeps()
    loggers, _ = group(remote)
    loggers.close(error)
    assert remote.calls == [("ended", status), "close"]


def test_loggers_that_upload_end_after_those_that_write_files():
    ends = []

    class Writes:
        def close(self):
            time.sleep(0.1)
            ends.append("file")

    class Sends(Keeps):
        def close(self):
            ends.append("upload")

    loggers = LoggerGroup([("remote", LoggerQueue("remote", Sends())), ("plot", LoggerQueue("plot", Writes()))])
    loggers.close()
    assert ends == ["file", "upload"]
