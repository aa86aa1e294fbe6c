"""What a page says of all rows, counted as they pass: a few bytes a row are held."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmbatch.manifest.sample import sampled_rows

COUNTED = (
    *("status", "text", "finish_reason", "prompt_tokens", "image_tokens", "completion_tokens"),
    "error_code",
)
_NUMBERS = {
    "prompt_tokens": "Prompt tokens",
    "image_tokens": "Image tokens",
    "completion_tokens": "Generated tokens",
    "characters": "Characters of an answer",
}
_MAX_BARS = 40
_LEAST_POINTS = 4  # of a run's pace
_LEAST_OF_A_KIND = 8  # rows shown of each error code and finish reason, where there are so many


@dataclass(slots=True)
class Figures:
    """Counts of all rows of an output, in the order in which they come.

    ``kinds``: the finish reason or error code of each, by its number in ``kind_names``.
    """

    numbers: dict[str, Counter[int]] = field(
        default_factory=lambda: {name: Counter() for name in _NUMBERS}
    )
    kind_names: dict[tuple[str, str], int] = field(default_factory=dict)
    kinds: array[int] = field(default_factory=lambda: array("H"))

    def add(self, table: pa.Table) -> None:
        """Count rows: a table of the columns ``COUNTED``."""
        for name in _NUMBERS:
            column = pc.utf8_length(table["text"]) if name == "characters" else table[name]
            values, counts = np.unique(column.drop_null().to_numpy(), return_counts=True)
            self.numbers[name].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        columns = (table[name].to_pylist() for name in ("status", "finish_reason", "error_code"))
        for status, reason, code in zip(*columns, strict=True):
            kind = (status, (reason if status == "ok" else code) or "none")
            self.kinds.append(self.kind_names.setdefault(kind, len(self.kind_names)))

    @property
    def num_rows(self) -> int:
        return len(self.kinds)

    def counts(self, status: str) -> dict[str, int]:
        """Rows by finish reason ("ok") or error code ("error"), the most frequent first."""
        found = np.bincount(np.frombuffer(self.kinds, np.uint16), minlength=len(self.kind_names))
        rows = Counter(
            {kind: int(found[n]) for (of, kind), n in self.kind_names.items() if of == status}
        )
        return dict(rows.most_common())

    def choose(self, size: int) -> NDArray[np.int64]:
        """At most ``size`` rows to show, ascending: spread, and some of every kind."""
        kinds = np.frombuffer(self.kinds, np.uint16)
        chosen = np.zeros(len(kinds), np.bool_)
        if size >= len(kinds):
            return np.arange(len(kinds))
        least = min(_LEAST_OF_A_KIND, size // max(1, len(self.kind_names)))
        for number in range(len(self.kind_names)):
            rows = np.flatnonzero(kinds == number)
            chosen[rows[sampled_rows(len(rows), least, 0)]] = True
        rest = np.flatnonzero(~chosen)
        chosen[rest[sampled_rows(len(rest), size - int(chosen.sum()), 0)]] = True
        return np.flatnonzero(chosen)

    def histograms(self) -> list[dict[str, Any]]:
        """For the page: of each number its bars, and its spread in words."""
        return [
            histogram(_NUMBERS[name], counts)
            for name, counts in self.numbers.items()
            if counts and max(counts) > 0
        ]


def histogram(title: str, counts: Counter[int]) -> dict[str, Any]:
    """Bars of equal width over the values, each with its first and last, and how many."""
    values = np.array(sorted(counts))
    weights = np.array([counts[value] for value in values.tolist()])
    low, high = int(values[0]), int(values[-1])
    width = -(-(high - low + 1) // _MAX_BARS)
    bars = np.bincount((values - low) // width, weights).astype(int).tolist()
    total, running = int(weights.sum()), np.cumsum(weights)

    def quantile(share: float) -> int:
        return int(values[np.searchsorted(running, share * total)])

    mean = float((values * weights).sum() / total)
    return {
        "title": title,
        "bars": [
            [_span(low + n * width, min(high, low + (n + 1) * width - 1)), count]
            for n, count in enumerate(bars)
        ],
        "text": f"{low:,} in every row"
        if low == high
        else f"{low:,} to {high:,}; half of the rows up to {quantile(0.5):,}, "
        f"95 % up to {quantile(0.95):,}; {mean:,.1f} on average",
        "total": round(mean * total),
    }


def pace_figures(points: Sequence[tuple[float, int, int]]) -> list[dict[str, Any]]:
    """Rows and tokens a second over a run's time, from its record; none of a short run."""
    if len(points) < _LEAST_POINTS:
        return []
    points = points[:: -(-len(points) // _MAX_BARS)]
    figures = []
    for place, title, unit in ((1, "Rows a second", "rows/s"), (2, "Tokens a second", "tokens/s")):
        rates = [
            [f"{later[0]:,.0f} s", round((later[place] - sooner[place]) / (later[0] - sooner[0]))]
            for sooner, later in pairwise(points)
        ]
        mean = points[-1][place] / points[-1][0]
        text = f"{mean:,.1f} {unit} over {points[-1][0]:,.0f} s of the process that ended the run"
        figures.append({"title": title, "bars": rates, "unit": f" {unit}", "text": text})
    return figures


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
