"""How many samples one server of a teacher may have in flight. Pure: a controller is told what happened, and when.

PressureLimit   servers that tell what runs and waits in them
LatencyLimit    servers that tell nothing: throughput is measured from the answers
ThrottleLimit   APIs that say themselves when it is too much

Times are monotonic seconds. A limit bounds samples, not requests: siblings of one request are sequences of their own.
"""

import math
from collections import deque
from typing import Protocol

from app.teachers.pressure import Pressure

_BINDING = 0.9  # of the limit in flight: only then does the limit hold anything back, and more may help


class Controller(Protocol):
    """One per replica. `in_flight`: samples of ours there, the one that is told of included.

    `answered` is told of an answer to a call that began at `asked_at`; `tokens`: how many were generated, 0 where that
    is not known. `refused` of a call that was refused as too much (429, 503), or not answered in time.
    """

    @property
    def limit(self) -> float: ...

    def answered(self, now: float, asked_at: float, weight: int, tokens: int, in_flight: int) -> None: ...

    def refused(self, now: float, asked_at: float, in_flight: int) -> None: ...


class ThrottleLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989), with TCP's slow start.

    Doubles with each limit's worth of answers until the first refusal, then grows by one. One cut for all calls that
    were under way when it was made: their refusals tell nothing new.
    """

    def __init__(self, start: float = 16.0, cut: float = 0.7) -> None:
        self._limit = start
        self._cut = cut
        self._doubling = True
        self._cut_at = -math.inf

    @property
    def limit(self) -> float:
        return self._limit

    def answered(self, now: float, asked_at: float, weight: int, tokens: int, in_flight: int) -> None:
        if asked_at > self._cut_at and in_flight >= _BINDING * math.floor(self._limit):
            self._limit += weight if self._doubling else weight / self._limit

    def refused(self, now: float, asked_at: float, in_flight: int) -> None:
        if asked_at > self._cut_at:
            self._limit = max(1.0, min(self._limit, in_flight) * self._cut)
            self._doubling = False
            self._cut_at = now


class PressureLimit:
    """Keeps a few samples waiting in the engine, so that no slot of it is ever free, and no more than a few.

    Grows while less than that waits: doubling until enough does, then by what is missing, more with each reading that
    is low. What waits beyond it is taken back at once, by our share of all that is in the engine. Where more than a
    tenth of the answers were preempted on their way, memory is over-committed: the limit is cut, and passes that mark
    later in small steps only.
    """

    TOLERATED = 0.1  # preemptions per answer
    HOLD = 5.0  # seconds after a cut without another one, and without growth

    def __init__(self, start: float = 16.0) -> None:
        self._limit = start
        self._doubling = True
        self._ceiling = math.inf  # where memory ran out
        self._cut_at = -math.inf
        self._running: deque[int] = deque(maxlen=10)  # as last read
        self._short = 0  # readings in a row that found too few waiting
        self._total: int | None = None  # preemptions that the engine has counted
        self._preempted = self._answers = 0.0  # ours, of the last ten readings or so

    @property
    def limit(self) -> float:
        return self._limit

    @property
    def settling(self) -> bool:
        """Whether it is worth to look again soon."""
        return self._doubling

    def answered(self, now: float, asked_at: float, weight: int, tokens: int, in_flight: int) -> None:
        self._answers += weight

    def refused(self, now: float, asked_at: float, in_flight: int) -> None:
        if asked_at > self._cut_at:
            self._cut(now, 0.7 * min(self._limit, in_flight))

    def pressed(self, now: float, found: Pressure, in_flight: int) -> None:
        """Told of each reading of the engine's metrics."""
        everybody = found.running + found.waiting
        ours = min(1.0, in_flight / everybody) if everybody else 1.0
        new = 0 if self._total is None else max(0, found.preemptions - self._total)
        self._total = found.preemptions
        self._preempted += ours * new
        over, rested = self._preempted > self.TOLERATED * (self._answers + 1), now - self._cut_at >= self.HOLD
        # What runs at the moment of a reading may be less than what can: slots are being filled. Its peak is compared.
        self._running.append(found.running)
        able = max(self._running)
        wanted = queue_for(able)
        queue = everybody - able
        if over and rested:
            self._cut(now, 0.9 * min(self._limit, in_flight))
        elif queue > 2 * wanted:
            self._limit = max(1.0, min(self._limit, in_flight) - ours * (queue - wanted))
            self._doubling = False
        elif queue < wanted / 2 and rested and in_flight >= _BINDING * math.floor(self._limit):
            self._short += 1
            self._grow(now, bool(new), wanted)
        else:
            self._short = 0
            if queue >= wanted / 2:
                self._doubling = False
        self._preempted, self._answers = 0.9 * self._preempted, 0.9 * self._answers

    def _grow(self, now: float, preempting: bool, wanted: float) -> None:
        if self._doubling and not preempting:
            self._limit *= 2
        elif self._limit < self._ceiling:
            step = min(wanted * 2.0 ** (self._short - 1), max(1.0, 0.25 * self._limit))
            self._limit = min(self._ceiling, self._limit + step)
        else:
            # Convex in the time since the cut, as CUBIC's probing is (RFC 9438): a mark set by accident is soon passed.
            growth = min(0.25, 0.01 * (1 + ((now - self._cut_at) / 8) ** 2))
            self._limit += max(0.5, growth * self._limit)
            self._ceiling = self._limit

    def _cut(self, now: float, limit: float) -> None:
        self._limit = self._ceiling = max(1.0, limit)
        self._doubling = False
        self._preempted = self._answers = 0.0
        self._cut_at = now


def queue_for(running: int) -> float:
    """Samples that should wait in an engine that generates so many: what is taken up while an answer travels back
    and the next call comes."""
    return 2 + running / 16


class LatencyLimit:
    """Climbs while more in flight brings more throughput, and rests where it does not.

    Throughput is in flight ÷ latency (Little, 1961), latency per generated token so that long answers do not look like
    a slow server. It is measured over epochs of answers to calls that began after the last change, and only while the
    limit holds something back. Elasticity of throughput is what decides: its relative change ÷ the limit's. Steps are
    twofold until one brings next to nothing, then a quarter, over epochs three times as long: what answers of uneven
    length bring by chance must be small beside what such a step brings. A limit that rests is tried upwards once in a
    while, and downwards where its latency has grown.

    Where answers come at once, whatever waits there waits for no time that matters, and it is we who are slow: more in
    flight then lets us take up many answers at a time, and the limit grows by a ninth. (A delay that is small enough is
    no congestion: CoDel, RFC 8289. By no more, so that the limit goes on to be what holds us back, and is judged.)
    Where that is over, throughput decides again.

    A step that what is in flight does not reach is taken back. Where answers take four times as long as they did, what
    was found is of another server, so to speak: it all begins anew.
    """

    STEP, WORTH, KEEP = 1.25, 0.5, 0.2  # elasticities: worth going on for, worth keeping
    AT_ONCE = 0.05  # seconds per answer
    ANOTHER = 4.0  # times the usual latency
    ROUNDS = 3  # of the limit's worth of answers in an epoch where a step is a quarter
    REST = 4  # epochs between trials

    def __init__(self, start: float = 4.0) -> None:
        self._start = start
        self._cut_at = -math.inf
        self._anew()
        # The present epoch: since when, answers to pass over until queues have their length, and what came after.
        self._began, self._skip = -math.inf, 0.0
        self._answers, self._seconds, self._work = 0, 0.0, 0
        self._short = 0  # answers while the limit was not reached

    def _anew(self) -> None:
        self._limit = self._start
        self._at_once = False
        self._factor = 2.0
        self._up = True
        self._climbed = False  # some step up was worth it
        self._before: tuple[float, float] | None = None  # (limit, seconds per token) to compare with
        self._resting = 0
        self._usual: float | None = None  # seconds per token where it came to rest

    @property
    def limit(self) -> float:
        return self._limit

    def answered(self, now: float, asked_at: float, weight: int, tokens: int, in_flight: int) -> None:
        if asked_at < self._began:
            return
        round_ = max(16, self._limit)
        if in_flight < _BINDING * math.floor(self._limit):
            self._short += weight
            if self._before is not None and self._short >= round_:
                self._take_back(*self._before)
                self._begin(now)
            return
        if self._skip > 0:
            self._skip -= weight
            if self._skip <= 0:
                self._began = now
            return
        self._answers += weight
        self._seconds += (now - asked_at) * weight
        self._work += max(tokens, weight)
        if self._answers >= round_:
            per_answer, per_token = self._seconds / self._answers, self._seconds / self._work
            coarse = self._factor == 2 or self._at_once or self._is_another(per_token)
            if coarse or self._answers >= self.ROUNDS * round_:
                self._at_end(per_answer, per_token, in_flight)
                self._begin(now)

    def refused(self, now: float, asked_at: float, in_flight: int) -> None:
        if asked_at > self._cut_at:
            self._rest(max(1.0, min(self._limit, in_flight) / 2), None)
            self._at_once = False
            self._cut_at = now
            self._begin(now)

    def _at_end(self, per_answer: float, per_token: float, in_flight: int) -> None:
        """Of an epoch, in which answers and tokens took so many seconds each."""
        if per_answer <= self.AT_ONCE:
            self._at_once = True
            self._rest(max(self._limit, in_flight + 1, in_flight / _BINDING), per_token)
            return
        if self._at_once:
            self._at_once = False
            if not self._is_another(per_token):
                # It was longer with each step: that it is longer now is no sign of a slow server.
                self._usual, self._resting = None, 0
        self._judge(per_token)

    def _judge(self, seconds: float) -> None:
        if self._before is None:
            return self._look(seconds)
        before, limit = self._before, self._limit
        gain = math.log(limit / before[0] * before[1] / seconds) / math.log(limit / before[0])
        if gain >= self.WORTH if self._up else gain < self.KEEP:
            self._climbed = self._climbed or self._up
            return self._go_on(limit, seconds)
        if self._up and gain >= self.KEEP:
            return self._rest(limit, seconds)
        if self._factor == 2:  # twice was too much, a little may not be; or nothing is, and less will do
            self._factor = self.STEP if self._climbed else 2.0
            if not self._up:
                return self._rest(*before)
            self._up = self._climbed
            return self._go_on(*before)
        return self._rest(*before)

    def _look(self, seconds: float) -> None:
        """An epoch at rest, or the first one of all."""
        if self._is_another(seconds):
            return self._anew()
        self._usual = seconds if self._usual is None else self._usual
        self._resting -= 1
        slower = seconds > 1.25 * self._usual
        if self._resting <= 0 or slower:
            self._up = not slower
            self._go_on(self._limit, seconds)

    def _is_another(self, seconds: float) -> bool:
        return self._usual is not None and seconds > self.ANOTHER * self._usual

    def _go_on(self, limit: float, seconds: float) -> None:
        self._before = (limit, seconds)
        self._limit = max(limit + 1, limit * self._factor) if self._up else max(1.0, limit / self._factor)
        if self._limit == limit:
            self._rest(limit, seconds)

    def _rest(self, limit: float, seconds: float | None) -> None:
        self._limit, self._usual = limit, seconds
        self._before, self._factor, self._resting = None, self.STEP, self.REST

    def _take_back(self, limit: float, seconds: float) -> None:
        """A step that something else forbade: it is made again when the limit is reached again."""
        factor = self._factor
        self._rest(limit, seconds)
        self._factor, self._resting = factor, 0

    def _begin(self, now: float) -> None:
        self._began, self._skip = now, self._limit if self._resting <= 0 else 0.0
        self._answers, self._seconds, self._work, self._short = 0, 0.0, 0, 0
