"""Where requests go, without threads, processes or a clock."""

import functools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_core.contracts.generation import GenerationRequest, Sampling
from rl_rollout.routing.concurrency import ConcurrencyLimit
from rl_rollout.routing.dispatcher import Dispatcher
from rl_rollout.routing.results import Results

PROMPT = np.array([1, 2, 3], np.int32)


def request(id, *, tokens=PROMPT, most=4, session="", priority=0, seed=0, sample=0):
    return GenerationRequest(
        id, tokens, Sampling(max_new_tokens=most), session=session, priority=priority, seed=seed, sample=sample
    )


def dispatcher(*replicas, limit=1000):
    made = Dispatcher(functools.partial(ConcurrencyLimit, start=limit, most=limit))
    for replica in replicas:
        made.add(replica)
    return made


def placed(sent):
    """Ids by replica."""
    return {replica: [asked.request.id for _, asked in part] for replica, part in sent.items()}


def test_a_request_goes_where_the_fewest_tokens_are_outstanding():
    one = dispatcher("a", "b")
    one.submit([request("long", most=100), *(request(f"short{i}", most=1) for i in range(3))], Results(4))
    assert placed(one.take(0.0)) == {"a": ["long"], "b": ["short0", "short1", "short2"]}


def test_requests_of_a_session_stay_with_the_replica_that_knows_it_while_it_lives():
    one = dispatcher("a", "b")
    one.submit([request("first", session="s", most=100)], Results(1))
    (home,) = one.take(0.0)
    one.submit([request("second", session="s")], Results(1))
    assert placed(one.take(0.0)) == {home: ["second"]}
    one.remove(home)
    (other,) = one.take(0.0)
    assert other != home
    one.submit([request("third", session="s")], Results(1))
    assert placed(one.take(0.0)) == {other: ["third"]}


def test_what_has_no_room_waits_and_the_highest_priority_is_next():
    one = dispatcher("a", limit=8)
    one.submit([request(f"r{i}") for i in range(10)], Results(10))
    one.submit([request("urgent", priority=1)], Results(1))
    attempts = one.take(0.0)["a"]
    assert [asked.request.id for _, asked in attempts] == ["urgent", *(f"r{i}" for i in range(7))]
    assert (one.waiting, one.in_flight) == (3, 8)
    assert one.finished("a", attempts[0][0], 4, 1.0).request.id == "urgent"
    assert placed(one.take(1.0)) == {"a": ["r7"]}


def test_requests_placed_by_index_go_out_at_once_with_the_samples_of_a_prompt_together():
    one = dispatcher("a", "b", limit=8)
    prompts = [np.array([9] * n, np.int32) for n in (5, 3, 3, 4)]
    requests = [request(f"{p}{s}", tokens=t, seed=p, sample=s) for p, t in enumerate(prompts) for s in range(4)]
    one.submit(requests, Results(16), exact=True)
    found = placed(one.take(0.0))
    assert found == {
        "a": [f"{p}{s}" for p in (0, 2) for s in range(4)],
        "b": [f"{p}{s}" for p in (1, 3) for s in range(4)],
    }


def test_many_requests_leave_nothing_behind():
    one = dispatcher("a", "b")
    sizes = []
    for turn in range(2_000):
        one.submit([request(f"{turn}")], Results(1), exact=turn % 2 == 0)
        ((replica, ((attempt, _),)),) = one.take(float(turn)).items()
        one.finished(replica, attempt, 3, float(turn))
        if turn in (200, 1_999):
            sizes.append(len(pickle.dumps(one)))
    assert not one.busy
    assert sizes[1] < 1.2 * sizes[0]


def test_an_id_in_flight_is_refused_and_nothing_of_the_submission_is_queued():
    one = dispatcher("a")
    one.submit([request("x")], Results(1))
    for twice in ([request("new"), request("x")], [request("new"), request("new")]):
        with pytest.raises(ValueError, match="ids are unique"):
            one.submit(twice, Results(2))
    assert placed(one.take(0.0)) == {"a": ["x"]}


def test_a_replica_without_progress_is_late():
    one = dispatcher("a", "b")
    one.submit([request("x"), request("y")], Results(2))
    sent = one.take(10.0)
    assert one.late(15.0, 5.0) == []
    one.finished("a", sent["a"][0][0], 1, 15.0)
    assert one.late(16.0, 5.0) == ["b"]
    one.restart_clocks(16.0)
    assert one.late(20.0, 5.0) == []


def test_withdrawn_requests_that_wait_are_forgotten_and_those_that_run_are_named():
    one = dispatcher("a", limit=8)
    mine, other = Results(12), Results(1)
    one.submit([request(f"r{i}") for i in range(12)], mine)
    one.submit([request("kept")], other)
    attempts = [attempt for attempt, _ in one.take(0.0)["a"]]
    waiting, running = one.withdraw(of=mine)
    assert [asked.request.id for asked in waiting] == ["r8", "r9", "r10", "r11"]
    assert running == {"a": attempts}
    assert len(one.failed("a", attempts, 0.0)) == 8
    assert placed(one.take(0.0)) == {"a": ["kept"]}


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_every_request_is_answered_once_whatever_dies_and_joins(data):
    one = dispatcher(0, 1, limit=8)
    alive, sent, late_answers = [0, 1], {}, []
    asked_for, answered, joined = [], [], 2
    for turn in range(data.draw(st.integers(5, 40), label="turns")):
        what = data.draw(st.sampled_from(["submit", "exact", "finish", "finish", "die", "join", "late"]))
        if what in ("submit", "exact"):
            ids = [f"{turn}/{i}" for i in range(data.draw(st.integers(1, 12)))]
            sessions = data.draw(st.lists(st.sampled_from(["", "s", "t"]), min_size=len(ids), max_size=len(ids)))
            one.submit(
                [request(i, session=s) for i, s in zip(ids, sessions, strict=True)],
                Results(len(ids)),
                exact=what == "exact",
            )
            asked_for += ids
        elif what == "finish" and sent:
            attempt = data.draw(st.sampled_from(sorted(sent)))
            answered.append(one.finished(sent.pop(attempt), attempt, 3, float(turn)).request.id)
        elif what == "die" and alive:
            gone = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            lost = one.remove(gone)
            late_answers += [(gone, attempt) for attempt, replica in sent.items() if replica == gone]
            assert len(lost) == sum(replica == gone for replica in sent.values())
            sent = {attempt: replica for attempt, replica in sent.items() if replica != gone}
        elif what == "join":
            alive.append(joined)
            one.add(joined)
            joined += 1
        elif what == "late" and late_answers:
            assert one.finished(*late_answers.pop(), 3, float(turn)) is None
        sent |= {attempt: replica for replica, part in one.take(float(turn)).items() for attempt, _ in part}
        assert one.in_flight == len(sent)
        assert one.waiting + one.in_flight + len(answered) == len(asked_for)
    if not alive:
        one.add(joined)
    while one.busy:
        sent |= {attempt: replica for replica, part in one.take(99.0).items() for attempt, _ in part}
        attempt, replica = sent.popitem()
        answered.append(one.finished(replica, attempt, 3, 99.0).request.id)
    assert sorted(answered) == sorted(asked_for)


def run_at(limit, speed, windows):
    """A replica that always has ``limit`` requests and delivers ``speed(limit)`` tokens a second."""
    now = 0.0
    for _ in range(windows):
        for _ in range(limit.limit):
            now += 10 / speed(limit.limit)
            limit.finished(10, in_flight=limit.limit, now=now)
    return limit.limit


def test_the_limit_grows_to_where_more_requests_bring_no_more_tokens():
    assert 100 <= run_at(ConcurrencyLimit(start=16), lambda n: min(n, 128), 60) <= 128 * 1.5**2


def test_the_limit_shrinks_where_more_requests_bring_fewer_tokens():
    assert run_at(ConcurrencyLimit(start=64), lambda n: n if n <= 100 else 100 * 100 / n, 30) <= 100 * 1.5


def test_a_replica_that_is_never_full_keeps_its_limit():
    limit = ConcurrencyLimit(start=64)
    for step in range(1000):
        limit.finished(10, in_flight=3, now=float(step))
    assert limit.limit == 64
