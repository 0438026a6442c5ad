"""Which request goes to which replica, and what becomes of it when that dies: a state machine without threads."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from rl_core.batch.packing import balance
from rl_core.contracts.generation import GenerationRequest

from rl_rollout.routing.concurrency import ConcurrencyLimit
from rl_rollout.routing.results import Results

Replica = Hashable


@dataclass(eq=False)
class Asked:
    """A request that has no answer yet.

    Attributes:
        results: of its submission.
        order: its place among all requests.
        exact: it is placed by its index in the submission, not by load, and sent whatever is in flight.
        deaths: replicas that died with it.
    """

    request: GenerationRequest
    results: Results
    order: int
    exact: bool = False
    deaths: int = 0

    @property
    def tokens(self) -> int:
        """Most that it may take of a replica."""
        return len(self.request.tokens) + self.request.sampling.max_new_tokens


@dataclass(eq=False)
class _Load:
    """What a replica is doing: requests by the number of the attempt, the tokens they may take, and since when
    (seconds) nothing has come."""

    limit: ConcurrencyLimit
    asked: dict[int, Asked] = field(default_factory=dict)
    tokens: int = 0
    waiting_since: float = 0.0


class Dispatcher:
    """Requests wait in the order of their priority and arrival. The next goes to the replica with the fewest
    outstanding tokens that has room, or to the one that has served its session before. Each attempt has a number of its
    own, so that an answer to an earlier attempt is never taken for one to a later.

    Args:
        limit: makes the limit of a new replica.
    """

    def __init__(self, limit: Callable[[], ConcurrencyLimit] = ConcurrencyLimit) -> None:
        self._new_limit = limit
        self._loads: dict[Replica, _Load] = {}
        self._waiting: list[tuple[int, int, Asked]] = []
        self._exact: list[Asked] = []
        self._ids: dict[str, Asked] = {}
        self._sessions: dict[str, Replica] = {}
        self._orders = itertools.count()
        self._attempts = itertools.count()
        self._by_load: list[tuple[int, int, Replica]] = []
        self._peaks = (0, 0)

    @property
    def waiting(self) -> int:
        """Requests that no replica has."""
        return len(self._waiting) + len(self._exact)

    @property
    def in_flight(self) -> int:
        """Requests that a replica has."""
        return len(self._ids) - self.waiting

    @property
    def busy(self) -> bool:
        """Whether a request has no answer yet."""
        return bool(self._ids)

    def outstanding(self, replica: Replica) -> int:
        """Tokens that a replica's requests may take."""
        return self._loads[replica].tokens

    def attempts_of(self, replica: Replica) -> list[int]:
        """The attempts that a replica is at."""
        load = self._loads.get(replica)
        return [] if load is None else list(load.asked)

    def add(self, replica: Replica) -> None:
        """A replica that can be given requests."""
        self._loads[replica] = _Load(self._new_limit())
        self._push(replica)

    def remove(self, replica: Replica) -> list[Asked]:
        """A replica is gone: its requests wait again, before others of their priority; returns them."""
        load = self._loads.pop(replica, None)
        if load is None:
            return []
        self._sessions = {session: one for session, one in self._sessions.items() if one != replica}
        lost = sorted(load.asked.values(), key=lambda asked: asked.order)
        for asked in lost:
            asked.deaths += 1
            self._queue(asked)
        return lost

    def submit(self, requests: Sequence[GenerationRequest], results: Results, *, exact: bool = False) -> None:
        """Queue requests.

        Raises:
            ValueError: an id is in flight, or comes twice.
        """
        seen: set[str] = set()
        for request in requests:
            if request.id in self._ids or request.id in seen:
                raise ValueError(f"request {request.id}: a request with this id is in flight; ids are unique")
            seen.add(request.id)
        for request in requests:
            asked = Asked(request, results, next(self._orders), exact)
            self._ids[request.id] = asked
            self._queue(asked)

    def take(self, now: float) -> dict[Replica, list[tuple[int, Asked]]]:
        """What is to be sent now: attempts and their requests by replica, in order."""
        sent: dict[Replica, list[tuple[int, Asked]]] = {}
        if not self._loads:
            return sent
        for replica, asked in itertools.chain(self._placed_by_index(), self._placed_by_load()):
            load = self._loads[replica]
            if not load.asked:
                load.waiting_since = now
            attempt = next(self._attempts)
            load.asked[attempt] = asked
            load.tokens += asked.tokens
            self._push(replica)
            sent.setdefault(replica, []).append((attempt, asked))
        self._peaks = max(self._peaks[0], self.waiting), max(self._peaks[1], self.in_flight)
        return sent

    def finished(self, replica: Replica, attempt: int, tokens: int, now: float) -> Asked | None:
        """The request that a completion of so many tokens answers; None where nobody waits for it any more."""
        load = self._loads.get(replica)
        if load is None or attempt not in load.asked:
            return None
        load.limit.finished(tokens, in_flight=len(load.asked), now=now)
        return self._end(load, replica, attempt, now)

    def failed(self, replica: Replica, attempts: Iterable[int], now: float) -> list[Asked]:
        """Requests that will not be answered, and are not tried again."""
        load = self._loads.get(replica)
        if load is None:
            return []
        return [self._end(load, replica, attempt, now) for attempt in attempts if attempt in load.asked]

    def withdraw(
        self, *, ids: Collection[str] | None = None, of: Results | None = None
    ) -> tuple[list[Asked], dict[Replica, list[int]]]:
        """Take requests back (all, those with ``ids`` or ``of`` a submission): those that were waiting, which are
        forgotten, and the attempts that replicas are at, which are not."""

        def meant(asked: Asked) -> bool:
            return (ids is None or asked.request.id in ids) and (of is None or asked.results is of)

        waiting = [a for a in [*(a for *_, a in self._waiting), *self._exact] if a.request.id in self._ids and meant(a)]
        for asked in waiting:
            del self._ids[asked.request.id]
        self._waiting = [entry for entry in self._waiting if entry[2].request.id in self._ids]
        heapq.heapify(self._waiting)
        self._exact = [asked for asked in self._exact if asked.request.id in self._ids]
        running = {
            replica: [attempt for attempt, asked in load.asked.items() if meant(asked)]
            for replica, load in self._loads.items()
        }
        return waiting, {replica: attempts for replica, attempts in running.items() if attempts}

    def forget(self, results: Results) -> dict[Replica, list[int]]:
        """Nobody waits for a submission any more; returns the attempts that replicas are at."""
        _, running = self.withdraw(of=results)
        for replica, attempts in running.items():
            self.failed(replica, attempts, self._loads[replica].waiting_since)
        return running

    def forget_all(self) -> list[Results]:
        """The same for every submission; returns them."""
        submissions = list({id(asked.results): asked.results for asked in self._ids.values()}.values())
        for results in submissions:
            self.forget(results)
        return submissions

    def peaks(self) -> tuple[int, int]:
        """The most requests at once that waited, and that replicas had, since the last call."""
        peaks, self._peaks = self._peaks, (0, 0)
        return peaks

    def late(self, now: float, limit_s: float) -> list[Replica]:
        """Replicas from which nothing has come for ``limit_s``, although they have requests."""
        return [r for r, load in self._loads.items() if load.asked and now - load.waiting_since > limit_s]

    def restart_clocks(self, now: float) -> None:
        """Replicas could do nothing until now."""
        for load in self._loads.values():
            load.waiting_since = now

    def _queue(self, asked: Asked) -> None:
        if asked.exact:
            self._exact.append(asked)
        else:
            heapq.heappush(self._waiting, (-asked.request.priority, asked.order, asked))

    def _end(self, load: _Load, replica: Replica, attempt: int, now: float) -> Asked:
        asked = load.asked.pop(attempt)
        load.tokens -= asked.tokens
        load.waiting_since = now
        del self._ids[asked.request.id]
        self._push(replica)
        return asked

    def _placed_by_index(self) -> Iterator[tuple[Replica, Asked]]:
        """Requests placed by index: samples of one prompt together, the longest prompts first."""
        exact, self._exact = sorted(self._exact, key=lambda asked: asked.order), []
        prompts: list[list[Asked]] = []
        for asked in exact:
            last = prompts[-1][0].request if prompts else None
            if last is not None and last.tokens is asked.request.tokens and last.seed == asked.request.seed:
                prompts[-1].append(asked)
            else:
                prompts.append([asked])
        if not prompts:
            return
        replicas = list(self._loads)
        costs = np.array(
            [len(p[0].request.tokens) + sum(a.request.sampling.max_new_tokens for a in p) for p in prompts]
        )
        loads = [self._loads[replica].tokens for replica in replicas]
        for replica, chosen in zip(replicas, balance(costs, len(replicas), loads=loads), strict=True):
            for place in sorted(chosen):
                for asked in prompts[place]:
                    yield replica, asked

    def _placed_by_load(self) -> Iterator[tuple[Replica, Asked]]:
        while self._waiting:
            asked = self._waiting[0][2]
            replica = self._place(asked.request.session)
            if replica is None:
                return
            heapq.heappop(self._waiting)
            if asked.request.session:
                self._sessions[asked.request.session] = replica
            yield replica, asked

    def _place(self, session: str) -> Replica | None:
        """The session's replica, or the one with the fewest outstanding tokens, of those that have room."""
        before = self._sessions.get(session) if session else None
        if before is not None and self._has_room(before):
            return before
        full = []
        found = None
        while self._by_load:
            tokens, _, replica = self._by_load[0]
            load = self._loads.get(replica)
            if load is None or load.tokens != tokens:
                heapq.heappop(self._by_load)  # from before a change
            elif not self._has_room(replica):
                full.append(heapq.heappop(self._by_load))
            else:
                found = replica
                break
        for entry in full:
            heapq.heappush(self._by_load, entry)
        return found

    def _has_room(self, replica: Replica) -> bool:
        load = self._loads[replica]
        return len(load.asked) < load.limit.limit

    def _push(self, replica: Replica) -> None:
        """Put a replica into the heap with what it has now; earlier entries no longer count."""
        if len(self._by_load) > 4 * len(self._loads) + 64:
            self._by_load = [(load.tokens, next(self._orders), one) for one, load in self._loads.items()]
            heapq.heapify(self._by_load)
        else:
            heapq.heappush(self._by_load, (self._loads[replica].tokens, next(self._orders), replica))
