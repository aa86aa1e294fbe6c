"""Where rows come from, and what their columns are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from vlmbatch.config.option import Opt, check_bounds
from vlmbatch.errors import ConfigError

ManifestFormat = Literal["auto", "manifest", "openai"]

FEATURE_MANIFEST = "manifest.jsonl"  # of a folder of features

_input = partial(Opt, panel="Input and output")


@dataclass(frozen=True, slots=True)
class ManifestConfig:
    """A manifest: a path, a folder, or "-" for JSONL on standard input.

    Raises:
        ConfigError: a value out of range, or a prefix that is no text.
    """

    source: Annotated[
        str,
        Opt(
            "MANIFEST",
            ".jsonl or .ndjson (also .gz, .zst), .parquet, a folder of either, or - for JSONL on "
            "standard input.",
            flag="--manifest",
            positional=True,
            filled=True,
        ),
    ]
    prompt_column: Annotated[str, _input("NAME", "Column of the prompts.")] = "prompt"
    image_column: Annotated[str, _input("NAME", "Column of the images.")] = "image"
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

    def __post_init__(self) -> None:
        check_bounds(self)
        try:
            (self.column_prefix or "").encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"column_prefix {self.column_prefix!r} is not UTF-8") from error
