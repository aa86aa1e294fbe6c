"""The workloads by name. Nothing heavy is imported here: the command line reads the names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vlmbatch.errors import ConfigError

if TYPE_CHECKING:
    from vlmbatch.models.processor import ImageProcessor
    from vlmbatch.types import ImageGrid


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows of one kind. Every image is new; rows that share one stand far apart.

    ``text_tokens``: of a prompt, without its image's. ``questions``: rows that ask about one
    image; the manifest has every image's first, then every image's second.
    """

    name: str
    image_size: tuple[int, int]  # width, height
    text_tokens: int
    max_tokens: int
    questions: int
    gpu_rows: int
    cpu_rows: int  # for the sample model
    picture: Literal["photo", "page"] = "photo"

    def on(self, device: str) -> Workload:
        """The workload as a type of device ("cpu" or "cuda") is given it."""
        return self if device == "cuda" else replace(self, max_tokens=min(self.max_tokens, 128))

    def num_images(self, rows: int) -> int:
        """Images of the largest manifest of at most ``rows`` rows; at least one."""
        return max(1, rows // self.questions)

    def grid(self, images: ImageProcessor) -> ImageGrid:
        """What a model makes of the workload's images."""
        width, height = self.image_size
        return images.grid(height, width)


# With LLaVA-1.5's 576 tokens an image, prompts have 600, 614, 593, 600 and 594 tokens.
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("classify", (640, 480), 24, 4, 1, gpu_rows=1536, cpu_rows=96),
        Workload("caption", (640, 480), 38, 128, 1, gpu_rows=768, cpu_rows=24),
        Workload("vqa", (640, 480), 17, 16, 8, gpu_rows=1024, cpu_rows=96),
        Workload("photos", (4032, 3024), 24, 4, 1, gpu_rows=512, cpu_rows=12),
        Workload("pages", (1024, 1448), 18, 512, 1, gpu_rows=384, cpu_rows=12, picture="page"),
    )
}


def parse_workloads(names: str) -> tuple[Workload, ...]:
    """The workloads of a comma-separated list, in its order.

    Raises:
        ConfigError: a name that is none, or one that comes twice.
    """
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in WORKLOADS:
            raise ConfigError(f"no workload {name!r}; there are: {', '.join(WORKLOADS)}")
        if wanted.count(name) > 1:
            raise ConfigError(f"workload {name} is given twice in {names!r}")
    return tuple(WORKLOADS[name] for name in wanted)
