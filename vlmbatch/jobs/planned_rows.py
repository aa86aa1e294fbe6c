"""What the rows that ``plan`` looks at take together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vlmbatch.costs.model import ModelCosts, model_costs
from vlmbatch.costs.work import Work
from vlmbatch.errors import RowError
from vlmbatch.manifest.validate import RowSize
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.family import family_of
from vlmbatch.models.processor import Processor
from vlmbatch.types import ImageGrid, Row

_MAX_BARS = 12


class PlannedRows:
    """Sums up rows. ``answer_tokens``: that an answer is taken to have; None: as many as it may.

    ``unknown``: rows whose size is not known, which are in no other figure. ``examples``: an error
    of each code.
    """

    def __init__(self, model: ModelConfig, processor: Processor, answer_tokens: int | None) -> None:
        self._model = model
        self._tokenizer = processor.tokenizer
        self._context = processor.max_model_len
        self._answer_tokens = answer_tokens
        self._image_flops: dict[ImageGrid, int] = {}
        self._seen: set[int] = set()  # hashes of images
        self._prefix_lengths: dict[tuple[str, ...], list[int]] = {}
        self.work = Work()
        self.prompt_tokens, self.image_tokens = LengthCounts(), LengthCounts()  # of each row
        self.tokens_of_images = LengthCounts()  # of each image
        self.unknown = 0
        self.examples: dict[str, str] = {}

    @property
    def distinct_images(self) -> int:
        return len(self._seen)

    def add(self, row: Row, size: RowSize | RowError) -> None:
        if isinstance(size, RowError):
            self.examples.setdefault(size.code, f"row {row.index} (id {row.id}): {size.message}")
            return
        if size.prompt_tokens is None:
            self.unknown += 1
            return
        image_tokens = sum(grid.num_tokens for grid in size.grids)
        self.prompt_tokens.add(size.prompt_tokens)
        self.image_tokens.add(image_tokens)
        flops = shared = 0
        for place, (ref, grid) in enumerate(zip(row.images, size.grids, strict=True)):
            self.tokens_of_images.add(grid.num_tokens)
            # By path or URL, as a run tells images apart before it reads them; embedded ones by
            # content.
            key = hash(ref if ref.data is None else replace(ref, path=None))
            if key in self._seen:
                shared += grid.num_tokens if place == 0 else 0  # a prefix of both prompts
            else:
                self._seen.add(key)
                flops += self._flops(grid)
        assert row.sampling is not None
        if row.sampling.choices:
            lengths = self._prefixes(tuple(row.sampling.choices))
            self.work.add_classes(size.prompt_tokens, lengths, flops, shared)
            return
        room = self._context - size.prompt_tokens
        generated = min(self._answer_tokens or row.sampling.max_tokens, max(1, room))
        self.work.add(size.prompt_tokens, generated, flops, shared, row.sampling.n)

    def _prefixes(self, choices: tuple[str, ...]) -> list[int]:
        """The lengths of the prefixes of classes that are scored behind a prompt, the empty one not
        among them; about, as what the prompt ends in has a say."""
        if choices not in self._prefix_lengths:
            paths = [self._tokenizer.encode(each, add_special_tokens=False) for each in choices]
            found = {tuple(path[:end]) for path in paths for end in range(1, len(path))}
            self._prefix_lengths[choices] = [len(path) for path in found]
        return self._prefix_lengths[choices]

    def costs(self, itemsize: int, kv_itemsize: int | None) -> ModelCosts:
        """The model's costs; what an image takes is in ``work``."""
        any_grid = next(iter(self._image_flops), ImageGrid(1, 1, 1, 3))
        return model_costs(self._model, itemsize, any_grid, kv_itemsize)

    def histograms(self) -> dict[str, list[tuple[int, int, int]]]:
        lengths = {
            "prompt tokens": self.prompt_tokens,
            "image tokens of a row": self.image_tokens,
            "tokens of an image": self.tokens_of_images,
        }
        return {name: [*found.bars()] for name, found in lengths.items() if found.counts}

    def _flops(self, grid: ImageGrid) -> int:
        if grid not in self._image_flops:
            flops = family_of(self._model).image_flops(self._model, grid)
            self._image_flops[grid] = flops.tower + flops.projector
        return self._image_flops[grid]


class LengthCounts:
    """How often each length was met."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self.counts[length] += 1

    def total(self) -> int:
        """The sum of all lengths."""
        return sum(length * count for length, count in self.counts.items())

    def bars(self) -> Iterator[tuple[int, int, int]]:
        """Bars of equal width: first length, last length, how many."""
        lengths = np.array(sorted(self.counts))
        weights = np.array([self.counts[length] for length in lengths.tolist()])
        low, high = int(lengths[0]), int(lengths[-1])
        width = -(-(high - low + 1) // _MAX_BARS)
        for number, count in enumerate(np.bincount((lengths - low) // width, weights).tolist()):
            first = low + number * width
            yield first, min(high, first + width - 1), int(count)
