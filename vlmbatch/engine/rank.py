"""Which of several processes that divide a model one is. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rank:
    """Number ``index`` of ``count``. ``store``: path of a file that all of them open to meet."""

    index: int = 0
    count: int = 1
    store: str = ""


ALONE = Rank()
