"""The processes that divide a model with this one, as rank 0 starts and drives them.

They end with this one, and it with any of them: a part of a model answers nothing.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping

from vlmbatch.engine.rank import Rank
from vlmbatch.log import logger
from vlmbatch.processes import anonymous_file
from vlmbatch.replicas.member import Link, News
from vlmbatch.replicas.messages import Failed, LogLine, Lost, Report, ToEngine
from vlmbatch.replicas.process import EngineProcess, HasDescriptor, Load

OnEnd = Callable[[Failed | Lost], None]


class Followers:
    """Ranks 1 to n - 1, which load and compute what this process does. ``rank``: its own.

    ``variables``: of the environment of each. ``on_end`` is told on a thread of the first that ends
    or fails, and is to end this process.
    """

    def __init__(
        self,
        load: Load,
        memory: HasDescriptor,
        variables: tuple[Mapping[str, str], ...],
        on_end: OnEnd,
    ) -> None:
        count = len(variables) + 1
        # They meet in a file without a name: no port is open to others, and nothing is left behind.
        store = f"/proc/{os.getpid()}/fd/{anonymous_file('vlmbatch-ranks')}"
        self.rank = Rank(0, count, store)
        self._on_end = on_end
        self._news: News = queue.SimpleQueue()
        self._reports = threading.Semaphore(0)
        self._links: list[Link] = []
        for index, own in enumerate(variables, start=1):
            rank = Rank(index, count, store)
            self._links.append(EngineProcess(load, memory, self._news, variables=own, rank=rank))
        threading.Thread(target=self._watch, name="followers", daemon=True).start()

    def tell(self, message: ToEngine) -> None:
        """Send ``message`` to each, without waiting."""
        for link in self._links:
            link.send(message)

    def await_reports(self) -> None:
        """Wait until each has obeyed all before the last ``Step``, which asks for that."""
        for _ in self._links:
            self._reports.acquire()

    def kill(self) -> None:
        """Begin to end all of them."""
        for link in self._links:
            link.kill()

    def _watch(self) -> None:
        while True:
            link, message = self._news.get()
            name = f"rank {self._links.index(link) + 1} of {self.rank.count}"
            if isinstance(message, Report):
                self._reports.release()
            elif isinstance(message, LogLine):
                logger.debug("%s: %s", name, message.message)  # rank 0 says the same
            elif isinstance(message, Failed):
                self._on_end(message)
            elif isinstance(message, Lost):
                self._on_end(Lost(f"{name}: {message.cause}"))
