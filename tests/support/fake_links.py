"""Engines of a pool that live in this process, and work and die when they are told to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from letter_tokenizer import LetterTokenizer

from vlmbatch.images.shared_memory import MappedMemory, SharedMemory
from vlmbatch.replicas.engine_side import EngineSide
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.member import News, Start
from vlmbatch.replicas.messages import Begun, EngineLimits, Failed, Lost, Ready, ToEngine
from vlmbatch.replicas.pool import ReplicaPool


class FakeLink:
    """One life of an engine. Messages are pickled by the real one, and so are not kept here."""

    def __init__(self, name: str, engine: object, memory: SharedMemory, news: News) -> None:
        self.name = name
        self.alive = True
        self.started = False
        self.inbox: deque[ToEngine] = deque()
        self.sent: list[ToEngine] = []
        self._news = news
        replica = LocalReplica(
            engine,  # type: ignore[arg-type]
            LetterTokenizer(),  # type: ignore[arg-type]
            on_begin=lambda indexes: self.tell(Begun(tuple(indexes))),
        )
        self.side = EngineSide(replica, MappedMemory(memory.descriptor))

    def tell(self, message: Begun | Failed | Lost) -> None:
        self._news.put((self, message))

    def send(self, message: ToEngine) -> None:
        self.sent.append(message)
        self.inbox.append(message)

    def kill(self) -> None:
        self.alive = False

    def close(self) -> None:
        self.alive = False

    def ready(self) -> None:
        self.started = True
        self._news.put((self, Ready(EngineLimits(4, 100, 100, on_cpu=True))))

    def receive(self) -> None:
        while self.inbox:
            self.side.obey(self.inbox.popleft())

    def work(self) -> None:
        """What comes of a step."""
        report = self.side.step()
        if report is not None:
            self._news.put((self, report))

    def die(self) -> None:
        self.alive = False
        self.tell(Lost("signal 9"))


@dataclass
class FakeEngines:
    """A pool and its engines, each life of which ``make_engine`` gives one."""

    make_engine: Callable[[], object]
    names: tuple[str, ...] = ("a", "b", "c")
    memory: SharedMemory = field(default_factory=SharedMemory)
    links: list[FakeLink] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = ReplicaPool({name: self._start(name) for name in self.names}, self.memory)

    def _start(self, name: str) -> Start:
        def start(news: News) -> FakeLink:
            self.links.append(FakeLink(name, self.make_engine(), self.memory, news))
            return self.links[-1]

        return start

    @property
    def alive(self) -> list[FakeLink]:
        return [link for link in self.links if link.alive]

    def start_all(self) -> None:
        for link in self.alive:
            if not link.started:
                link.ready()

    def work_all(self) -> None:
        for link in self.alive:
            if link.started:
                link.receive()
                link.work()
