"""Where rows come from, and what their columns are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from vlmbatch.config.option import Opt, check_bounds
from vlmbatch.config.pages import PageRanges
from vlmbatch.errors import ConfigError, FieldError

ManifestFormat = Literal["auto", "manifest", "openai"]

FEATURE_MANIFEST = "manifest.jsonl"  # of a folder of features

# The end of a name with its dot. ``image`` and ``id`` are an image's own columns.
_SIDECAR = re.compile(r"(?!\.(?:image|id)$)\.[^/\0\ud800-\udfff]*[^/\0.\ud800-\udfff]")

_FILE = "file://"  # what follows is a path

_input = partial(Opt, panel="Input and output")


@dataclass(frozen=True, slots=True)
class ManifestConfig:
    """A manifest: a path, a folder, a URL of either, or "-" for JSONL on standard input.

    Raises:
        ConfigError: a value out of range, a prefix that is no text, or a suffix that is none.
    """

    source: Annotated[
        str,
        Opt(
            "MANIFEST",
            ".jsonl, .ndjson, .csv or .tsv (also .gz, .zst), .parquet, .tar, a folder of one of "
            "these, - for JSONL on standard input; or a folder of images, or a pattern such as "
            "'photos/**/*.jpg'. Also in a store, as in s3://bucket/rows.parquet.",
            flag="--manifest",
            positional=True,
            filled=True,
        ),
    ]
    prompt: Annotated[
        str | None,
        _input(
            "TEXT",
            "Prompt of all rows that bring none, as those of a folder of images. Without <image> "
            "in it, it goes through the model's chat template, as with --chat.",
        ),
    ] = None
    sidecars: Annotated[
        tuple[str, ...],
        _input(
            "SUFFIX",
            "Of a folder of images: read the file beside each that ends so, such as .txt or .json, "
            "into a column (txt, json). Repeatable.",
            flag="--sidecar",
        ),
    ] = ()
    pages: Annotated[
        str | None,
        _input("RANGE", "Of PDFs in a folder: these pages alone, as in 1-20 or 1,5-.", filled=True),
    ] = None
    dpi: Annotated[
        int | None,
        _input(
            "N",
            "Render pages of PDFs at N pixels an inch (default: 150), where --longest-side does "
            "not say their size.",
            minimum=1,
            maximum=2400,
        ),
    ] = None
    prompt_column: Annotated[str, _input("NAME", "Column of the prompts.")] = "prompt"
    image_column: Annotated[str, _input("NAME", "Column of the images.")] = "image"
    image_base: Annotated[
        str | None,
        _input(
            "PLACE",
            "Where relative image paths start: a folder, also of an object store, such as "
            "s3://photos/2026, or an http(s) URL of a host that --allow-domain names (default: the "
            "manifest's folder).",
            filled=True,
        ),
    ] = None
    id_column: Annotated[str, _input("NAME", "Column of the row ids.")] = "id"
    limit: Annotated[int | None, _input("N", "Read the first N rows only.", minimum=0)] = None
    sample: Annotated[
        int | None,
        _input(
            "N",
            "Take N rows only, spread over the manifest, the same ones each time.",
            minimum=1,
        ),
    ] = None
    sample_seed: Annotated[
        int, _input("N", "Which rows --sample takes: another number, other rows.", minimum=0)
    ] = 0
    max_line_bytes: int = 16 * 2**20
    format: Annotated[
        ManifestFormat,
        _input(
            "NAME",
            "manifest: rows of your own; openai: requests of an OpenAI batch file; auto: by the "
            "first line.",
        ),
    ] = "auto"
    column_prefix: Annotated[  # None: the output has no columns of its own
        str | None,
        _input(
            "TEXT",
            "Put this before the names of the output's own columns, where the manifest has some "
            "of the same name.",
        ),
    ] = ""
    keep_inputs: Annotated[
        bool, _input("", "Write prompts and images beside the answers, as the manifest has them.")
    ] = False
    parse_json: Annotated[
        bool,
        _input("", "Write the fields of JSON answers as columns, typed as --json-schema says."),
    ] = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.source.lower().startswith(_FILE):
            object.__setattr__(self, "source", self.source[len(_FILE) :])
        try:
            (self.column_prefix or "").encode()
        except UnicodeEncodeError as error:
            raise FieldError("column_prefix", f"{self.column_prefix!r} is not UTF-8") from error
        if self.pages is not None:
            PageRanges(self.pages)
        for suffix in self.sidecars:
            if not _SIDECAR.fullmatch(suffix):
                raise ConfigError(
                    f"--sidecar {suffix!r:.80}: give the end of the files' names with its dot, "
                    "such as .txt; a column image or id cannot come from one"
                )
        if len({*self.sidecars}) < len(self.sidecars):
            raise ConfigError(f"--sidecar {' '.join(self.sidecars)}: one of them is given twice")

    @property
    def asks_in_chat(self) -> bool:
        """Whether ``prompt`` is a question alone, without the text that models expect around it."""
        return self.prompt is not None and "<image>" not in self.prompt
