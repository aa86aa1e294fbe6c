"""How long a start takes, stage by stage: what ``-v`` and ``--summary-json`` tell of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self

from vlmbatch.processes import seconds_since_start

_LAST = "first_answer"


@dataclass(slots=True)
class Stages:
    """Seconds of stages that follow one another, by name: together all of the time since ``since``.

    What is done meanwhile on other threads counts only as far as it is waited for.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def end(self, name: str) -> None:
        """What was done since the end of the stage before was ``name``."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since
        self.since = now

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}


@dataclass(frozen=True, slots=True)
class EngineStart:
    """What an engine has done for the first time, since it began to load.

    ``stages``: seconds of loading. ``graph_seconds``: of capturing ``graphs_captured`` CUDA graphs.
    ``kernel_seconds``: of compiling ``kernels_compiled`` Triton kernels, and of finding
    ``kernels_loaded`` that an earlier process has compiled. A kernel counts once for each of its
    specializations.
    """

    stages: dict[str, float] = field(default_factory=dict)
    graphs_captured: int = 0
    graph_seconds: float = 0.0
    kernels_compiled: int = 0
    kernels_loaded: int = 0
    kernel_seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        """As ``--summary-json`` has them."""
        return {
            "engine": self.stages,
            "graphs": {"captured": self.graphs_captured, "seconds": round(self.graph_seconds, 3)},
            "kernels": {
                "compiled": self.kernels_compiled,
                "loaded": self.kernels_loaded,
                "seconds": round(self.kernel_seconds, 3),
            },
        }


@dataclass(slots=True)
class StartTimes:
    """The stages of a run until its first answer, and what the engine did within them."""

    stages: Stages = field(default_factory=Stages)
    engine: EngineStart | None = None  # of several, none

    @classmethod
    def of_process(cls) -> Self:
        """Times since this process began; the first stage, until now, is ``process``."""
        stages = Stages(since=time.monotonic() - seconds_since_start())
        stages.end("process")
        return cls(stages)

    def end(self, stage: str) -> None:
        """A stage is over; the first answer is the last."""
        if _LAST not in self.stages.seconds:
            self.stages.end(stage)

    def figures(self) -> dict[str, Any]:
        """As ``--summary-json`` has them: ``seconds`` are those of all ``stages``."""
        stages = self.stages.rounded()
        engine = {} if self.engine is None else self.engine.figures()
        return {"seconds": round(sum(stages.values()), 3), "stages": stages, **engine}

    def __str__(self) -> str:
        """The same in a line, for people."""
        stages = self.stages.rounded()
        line = f"start: {sum(stages.values()):.2f} s: {_listed(stages)}"
        if self.engine is None:
            return line
        if self.engine.stages:
            line += f"; of the engine {_listed(self.engine.stages)}"
        return (
            f"{line}; until the end {self.engine.graphs_captured} CUDA graphs were captured in "
            f"{self.engine.graph_seconds:.2f} s, {self.engine.kernels_compiled} kernels compiled "
            f"and {self.engine.kernels_loaded} found compiled in {self.engine.kernel_seconds:.2f} s"
        )


def _listed(stages: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in stages.items())
