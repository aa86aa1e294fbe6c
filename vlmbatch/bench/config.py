"""What to measure. Nothing heavy is imported here: the command line reads the options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from vlmbatch.bench.workloads import WORKLOADS, Workload
from vlmbatch.config import EngineConfig, ImageLoading
from vlmbatch.config.option import Opt
from vlmbatch.config.session import MODEL


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What to measure.

    ``model`` None: LLaVA-1.5-7B with random weights on a GPU, else the sample model. ``rows`` of
    each workload, None: its own number for the device. ``startup``: also time processes, from
    their start to their first row and to their end.
    """

    model: Annotated[str | None, MODEL] = None
    workloads: tuple[Workload, ...] = tuple(WORKLOADS.values())
    random_weights: Annotated[
        bool,
        Opt(
            "",
            "Make weights up: --model is then a config.json, a folder that has one, or "
            "a known name such as llava-1.5-7b or qwen3-vl-8b.",
            panel="Model",
        ),
    ] = False
    rows: Annotated[
        int | None,
        Opt(
            "N",
            "Rows of each workload; absent: what fills the device, fewer on a CPU.",
            minimum=1,
        ),
    ] = None
    json_answers: Annotated[
        bool,
        Opt(
            "",
            "Have answers follow a JSON schema of ten fields; each is as long as without it.",
        ),
    ] = False
    startup: Annotated[
        bool,
        Opt(
            "",
            "Also time `vlmbatch run` as a process: to its first row, and as a whole for each "
            "workload; random weights are written to the temporary folder for it.",
        ),
    ] = False
    engine: EngineConfig = field(default_factory=EngineConfig)
    image_loading: ImageLoading = field(default_factory=ImageLoading)
