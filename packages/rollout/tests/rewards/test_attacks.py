"""Code inside a reward's process attacks the answer, the driver and the machine: nothing but ``on_error`` follows."""

import math
import sys
import time

import pytest
from rl_core.component import Component, ComponentChoice
from rl_core.config.sections import RewardConfig
from rl_core.contracts.reward import Sample
from rl_rollout.rewards.scoring import WeightedRewards, scorer

REWARD = '''
import ctypes, gc, json, os, pathlib, pickle, signal, socket, struct, sys, threading, time

HERE = pathlib.Path(__file__).parent

class Boom:
    def __reduce__(self):
        return os.mkdir, (str(HERE / "owned"),)

def secrets():
    """Every text and bytes that frames and the garbage collector lead to."""
    frame, found = sys._getframe(), set()
    while frame:
        found |= {v for v in [*frame.f_locals.values(), *frame.f_globals.values()] if isinstance(v, (str, bytes))}
        frame = frame.f_back
    for thing in gc.get_objects():
        try:
            values = vars(thing).values()
        except TypeError:
            values = thing.values() if isinstance(thing, dict) else ()
        found |= {v for v in list(values) if isinstance(v, (str, bytes))}
    return {v.encode(errors="replace") if isinstance(v, str) else v for v in found}

def score99():
    return json.dumps({"value": {"outcomes": [{"reward": 99.0}]}}).encode()

def frame(kind, body):
    return struct.pack("!BQ", kind, len(body)) + body

def forged():
    """Answers as the child would give them, and as the supervisor would, with all that could be a nonce."""
    yield frame(2, score99())
    for nonce in [bytes(16), *(s for s in secrets() if len(s) in (16, 32))][:200]:
        yield frame(2, nonce + score99())
    yield frame(3, bytes(16))
    yield pickle.dumps(("outcomes", [{"reward": 99.0}]))
    yield pickle.dumps(Boom())
    yield frame(2, pickle.dumps(Boom()))
    yield frame(200, b"?") + os.urandom(5000)
    yield frame(2, b"[" * 100000)

def descriptors():
    """Opened here, and in the supervisor, through /proc."""
    own = [int(fd) for fd in os.listdir("/proc/self/fd")]
    for pid in ("self", str(os.getppid())):
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for fd in names:
            try:
                own.append(os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                pass
    return [fd for fd in own if fd > 2]

def write_everywhere(data):
    for fd in descriptors():
        try:
            os.set_blocking(fd, False)
            os.write(fd, data)
        except OSError:
            pass

def the_connection():
    """The socket that this process answers on."""
    return next(o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() > 0)

def every_forgery_everywhere():
    for data in forged():
        write_everywhere(data)

def one_forgery(): write_everywhere(frame(2, score99()))
def a_forgery_then_exit(): one_forgery(); os._exit(0)
def a_forgery_then_silence(): one_forgery(); time.sleep(600)
def a_forgery_through_the_connection(): the_connection().sendall(frame(2, score99()))
def a_forgery_through_the_connection_then_exit(): a_forgery_through_the_connection(); os._exit(0)
def a_forgery_by_a_fork():
    if os.fork() == 0:
        a_forgery_through_the_connection(); os._exit(0)
    os.wait()
def a_forgery_by_a_thread():
    thread = threading.Thread(target=a_forgery_through_the_connection); thread.start(); thread.join()
def a_pickle(): the_connection().sendall(pickle.dumps(Boom()))
def garbage(): the_connection().sendall(os.urandom(100000))
def an_endless_frame(): the_connection().sendall(struct.pack("!BQ", 2, 2**63))
def deep_json(): the_connection().sendall(frame(2, b"[" * 100000))
def exit_early(): os._exit(0)
def close_everything(): os.closerange(0, 4096)
def end_the_supervisor(): os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)
def stop_the_supervisor(): os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)
def end_the_group(): os.killpg(0, signal.SIGKILL)
def a_base_exception(): raise KeyboardInterrupt("now")

def _soon():
    time.sleep(0.1); a_forgery_through_the_connection()

class Attacked:
    def __init__(self, config):
        pass
    def score(self, samples):
        for sample in samples:
            if sample.completion == "prepares":
                threading.Thread(target=_soon).start()
            elif sample.completion != "honest":
                globals()[sample.completion]()
        return [1.0 for _ in samples]
'''

ATTACKS = [line.split("(")[0][4:] for line in REWARD.splitlines() if line.startswith("def ")][7:-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    (folder / "attacked_reward.py").write_text(REWARD)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def attacked(folder):
    component = Component("reward", "attacked", "attacked_reward:Attacked", "x:Y", "")
    config = RewardConfig(name="attacked", timeout_s=1.0, on_error="drop")
    choice = ComponentChoice("reward", "attacked", component, "rl-attacked", config)
    pipeline = WeightedRewards([(choice, scorer(choice, None))])
    yield pipeline
    pipeline.close()


def samples(*completions):
    return [Sample(row={}, prompt="", completion=c) for c in completions]


SLOW = {"stop_the_supervisor"}
"""The driver gives a stopped supervisor 15 s beyond the deadline, and 10 s to end."""


def test_every_attack_is_listed():
    assert len(ATTACKS) == 18
    assert "garbage" in ATTACKS


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a not in SLOW])
def test_an_attack_on_the_answer_gets_nothing_but_on_error(attack, attacked, folder):
    rewards = attacked.score(samples(attack)).rewards
    assert math.isnan(rewards[0]), "a forged score was taken"
    assert attacked.score(samples("honest")).rewards.tolist() == [1.0]
    assert not (folder / "owned").exists(), "code ran in the driver"


def test_an_answer_that_is_prepared_for_a_later_call_is_not_taken(attacked):
    assert attacked.score(samples("prepares")).rewards.tolist() == [1.0]
    time.sleep(0.5)
    assert attacked.score(samples("honest")).rewards.tolist() == [1.0]


@pytest.mark.nightly
@pytest.mark.parametrize("attack", sorted(SLOW))
def test_a_supervisor_that_is_stopped_is_replaced(attack, attacked, folder):
    test_an_attack_on_the_answer_gets_nothing_but_on_error(attack, attacked, folder)
