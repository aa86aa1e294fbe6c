"""The README.md of a data set on the Hub, with the fields in its head that the Hub reads.

https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmbatch.durable.run_record import RunRecord
from vlmbatch.manifest.parquet_file import read_footer
from vlmbatch.output.chosen_settings import chosen_settings
from vlmbatch.output.reader import OutputCounts

# Where a card has this line, it may be replaced by that of a later run.
MARK = "<!-- Written by vlmbatch: a later run replaces this card, unless this line is removed. -->"
_READING = 'import datasets\n\nrows = datasets.load_dataset("{name}", split="train")'
_TICKS = re.compile("`+")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of all shards. Bytes of their files, and of their columns before compression."""

    rows: int
    file_bytes: int
    column_bytes: int

    @classmethod
    def of(cls, shards: Sequence[Path]) -> Sizes:
        footers = [read_footer(path) for path in shards]
        return cls(
            sum(footer.num_rows for footer in footers),
            sum(path.stat().st_size for path in shards),
            sum(
                footer.row_group(group).total_byte_size
                for footer in footers
                for group in range(footer.num_row_groups)
            ),
        )


def dataset_card(
    name: str, folder: str, record: RunRecord, counts: OutputCounts, sizes: Sizes
) -> bytes:
    """The card of the data set ``OWNER/NAME``, whose shards lie in ``folder``."""
    about, prefix = record.about, record.settings.get("column_prefix", "")
    lines = [
        "---",
        "tags:",
        "- vlmbatch",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {json.dumps(f'{folder}/train-*.parquet')}",
        "dataset_info:",
        "  splits:",
        "  - name: train",
        f"    num_bytes: {sizes.column_bytes}",
        f"    num_examples: {sizes.rows}",
        f"  download_size: {sizes.file_bytes}",
        f"  dataset_size: {sizes.column_bytes}",
        "---",
        MARK,
        "",
        f"# {name}",
        "",
        f"Answers of `{_plain(about.get('model'))}` to the rows of "
        f"`{_plain(about.get('manifest'))}`, made by vlmbatch {record.version}.",
        "",
        *_table(
            {
                "rows": f"{counts.num_rows:,}",
                "answered": f"{counts.num_rows - counts.errors.total():,}",
                **{f"error `{code}`": f"{n:,}" for code, n in counts.errors.most_common()},
                "begun": record.started,
                "run": f"`{record.id}`",
            }
        ),
        "",
        "Settings that are not the defaults:",
        "",
        *_table({name: f"`{_plain(v)}`" for name, v in chosen_settings(record.settings).items()}),
        "",
        "The command:",
        "",
        *_code("sh", str(about.get("command", ""))),
        "",
        "To read it:",
        "",
        *_code("python", _READING.format(name=name)),
        "",
        f"`{prefix}status` is `ok` or `error`, and `{prefix}text` the answer.",
        "",
    ]
    return "\n".join(lines).encode("utf-8", "replace")


def _table(values: Mapping[str, str]) -> list[str]:
    if not values:
        return ["none"]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]


def _plain(value: object) -> str:
    """What may stand in a cell, between backticks."""
    return str(value).replace("`", "'").replace("|", "\\|").replace("\n", " ")


def _code(language: str, text: str) -> list[str]:
    """A fenced block, whose fence is longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, _TICKS.findall(text)), default=0))
    return [f"{fence}{language}", text, fence]
