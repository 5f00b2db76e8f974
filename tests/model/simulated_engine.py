"""A discrete-event model of an inference engine behind a closed loop of clients, in virtual time.

The engine has slots and key-value memory. A sequence takes a slot, its prompt's blocks at its start and a block more
for each token; where memory runs out the youngest sequence is preempted and begins again later. A token takes
`token_seconds`, and longer the more run beside it (`batch_cost`). Queueing is unbounded, as in vLLM.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from app.teachers.admission import Controller
from app.teachers.pressure import Pressure

TICK = 0.02  # seconds of one step of the engine


@dataclass(frozen=True)
class EngineModel:
    slots: int
    tokens: int = 64  # mean length of an answer
    spread: float = 0.3  # its coefficient of variation
    token_seconds: float = 0.01
    batch_cost: float = 0.0  # 1: the time of a token doubles when all slots are taken
    memory: float = float("inf")  # tokens
    prompt: int = 32  # tokens
    travel: float = 0.005  # seconds of an answer to the client and of the next call back, each


@dataclass(eq=False)
class Sample:
    client: int
    asked_at: float
    length: int
    made: float = 0.0  # tokens
    lost: float = 0.0  # tokens that are to be computed again


@dataclass
class Trace:
    """Samples of what went on, one a tick."""

    busy: float = 0.0  # slot-seconds
    room: float = 0.0  # slot-seconds that were there
    preemptions: int = 0
    answers: int = 0
    tokens: int = 0
    waiting: list[int] = field(default_factory=list)
    limits: list[list[float]] = field(default_factory=list)


class Simulation:
    """`clients`: controllers, each with as much work as it may send."""

    def __init__(
        self, model: EngineModel, clients: Sequence[Controller], seed: int = 0, poll: float = 1.0
    ) -> None:
        self.model, self.clients, self.poll = model, clients, poll
        self.random = random.Random(seed)
        self.now = 0.0
        self.queue: deque[Sample] = deque()
        self.running: list[Sample] = []
        self.in_flight = [0] * len(clients)
        self.held_until = [0.0] * len(clients)  # after a refusal
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.preemptions = 0
        self.stalled_until = 0.0
        self.refusing_until = 0.0
        self.trace = Trace()
        self._polled = 0.0
        self._number = 0
        self._wanted = 0

    def run(self, seconds: float, wanted: int = 1000) -> Trace:
        """Go on for so long. `wanted`: samples that each client would send if it could. Returns what went on."""
        self.trace = Trace()
        end = self.now + seconds
        self._wanted = wanted
        while self.now < end:
            self.now += TICK
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
            for client in range(len(self.clients)):
                self._send(client, wanted)
            self._step()
            if self.now - self._polled >= self.poll:
                self._polled = self.now
                self._report()
            self.trace.busy += len(self.running) * TICK
            self.trace.room += self.model.slots * TICK
            self.trace.waiting.append(len(self.queue))
            self.trace.limits.append([client.limit for client in self.clients])
        return self.trace

    def _send(self, client: int, wanted: int) -> None:
        controller = self.clients[client]
        if self.now < self.held_until[client]:
            return
        while self.in_flight[client] < min(int(controller.limit), wanted):
            self.in_flight[client] += 1
            mean, spread = self.model.tokens, self.model.spread
            length = max(1, round(self.random.gauss(mean, spread * mean)))
            sequence = Sample(client, self.now, length)
            self._later(self.model.travel, partial(self._arrive, sequence))

    def _arrive(self, sequence: Sample) -> None:
        if self.now < self.refusing_until:
            self._later(self.model.travel, partial(self._refused, sequence))
        else:
            self.queue.append(sequence)

    def _step(self) -> None:
        model = self.model
        if self.now < self.stalled_until:
            return
        if self.running:
            speed = 1 / (model.token_seconds * (1 + model.batch_cost * len(self.running) / model.slots))
            for sequence in self.running:
                # What was preempted is computed again, at the speed of a prompt.
                again = min(sequence.lost, 10 * speed * TICK)
                sequence.lost -= again
                sequence.made += speed * TICK - again / 10
            for sequence in [s for s in self.running if s.made >= s.length]:
                self.running.remove(sequence)
                self._later(model.travel, partial(self._answered, sequence))
            while self._used() > model.memory and len(self.running) > 1:
                youngest = self.running.pop()
                youngest.lost = youngest.made
                self.queue.appendleft(youngest)
                self.preemptions += 1
                self.trace.preemptions += 1
        while (
            self.queue
            and len(self.running) < model.slots
            and self._used() + model.prompt + self.queue[0].made <= model.memory
        ):
            self.running.append(self.queue.popleft())

    def _used(self) -> float:
        return sum(sequence.made for sequence in self.running) + self.model.prompt * len(self.running)

    def _answered(self, sequence: Sample) -> None:
        client = sequence.client
        self.trace.answers += 1
        self.trace.tokens += sequence.length
        self.clients[client].answered(self.now, sequence.asked_at, 1, sequence.length, self.in_flight[client])
        self.in_flight[client] -= 1
        self._send(client, self._wanted)

    def _refused(self, sequence: Sample) -> None:
        client = sequence.client
        self.held_until[client] = self.now + 0.5
        self.clients[client].refused(self.now, sequence.asked_at, self.in_flight[client])
        self.in_flight[client] -= 1

    def _report(self) -> None:
        found = Pressure(len(self.running), len(self.queue), self.preemptions, None)
        for client, controller in enumerate(self.clients):
            pressed = getattr(controller, "pressed", None)
            if pressed is not None:
                pressed(self.now, found, self.in_flight[client])

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self.events, (self.now + seconds, self._number, what))
