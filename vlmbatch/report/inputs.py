"""The prompts and images of rows whose answers are shown, from the manifest of their run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmbatch.config import ImageLimits, ManifestConfig, SamplingParams
from vlmbatch.config.option import build
from vlmbatch.durable.run_paths import RECORD_FILE, work_folder_path
from vlmbatch.durable.run_record import RunRecord, read_record
from vlmbatch.errors import ConfigError, ErrorCode, ManifestError
from vlmbatch.manifest.columns import MESSAGES_COLUMN, Columns
from vlmbatch.manifest.image_column import ImageColumn
from vlmbatch.manifest.json_text import dump_json
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.rows import RowBuilder
from vlmbatch.output.parts import parts_named, read_part
from vlmbatch.remote.errors import RemoteError
from vlmbatch.types import ImageRef, Row


@dataclass(frozen=True, slots=True)
class RowInput:
    """What a row asked. ``problem``: why its images are not to be had here."""

    prompt: str | None
    images: tuple[ImageRef, ...]
    problem: str | None = None


def record_of(output: Path) -> RunRecord | None:
    """The run that wrote ``output``, where it is known.

    Raises:
        OutputError: what is there cannot be read.
    """
    if output.is_dir() and (parts := parts_named(output)):
        part = read_part(output / parts[0].file_name)
        return None if part is None else part.record()
    record = read_record(work_folder_path(output) / RECORD_FILE)
    if record is None and (part := read_part(output)) is not None:
        return part.record()
    return record


def image_limits(record: RunRecord | None) -> ImageLimits:
    """Those of the run, also where images may lie."""
    if record is None or (limits := record.settings.get("image_limits")) is None:
        return ImageLimits()
    root = limits.get("root")
    return ImageLimits(None if root is None else Path(root), limits["max_pixels"])


class InputReader:
    """Finds what rows asked: by ``--keep-inputs`` in the output itself, else in the manifest.

    ``manifest``: in the place of the one that the run's record names.
    """

    def __init__(self, record: RunRecord | None, manifest: str | None) -> None:
        settings: Mapping[str, Any] = {} if record is None else record.settings
        about: Mapping[str, Any] = {} if record is None else record.about
        prompt, image, row_id = settings.get("columns", ("prompt", "image", "id"))
        self.note: str | None = None
        self._is_given = manifest is not None
        _, options, _ = about.get("options") or ({}, {}, {})  # none of merged outputs
        names = ("prompt",) if self._is_given else ("prompt", "sidecar", "pages", "dpi")
        source = manifest or about.get("manifest") or "-"
        known = {"prompt": settings.get("prompt"), **options}
        asked = {name: known[name] for name in names if name in known}
        self.config = replace(
            build(ManifestConfig, {**asked, "manifest": source}, "argument"),
            prompt_column=prompt,
            image_column=image,
            id_column=row_id,
            limit=settings.get("limit"),
            sample=settings.get("sample"),
            sample_seed=settings.get("sample_seed", 0),
            format=settings.get("format", "auto"),
            column_prefix=None,
        )
        self._model = about.get("model", "")
        self._base = settings.get("images_from")

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that hold what a row asked."""
        return self.config.prompt_column, self.config.image_column, MESSAGES_COLUMN

    def is_kept_in(self, extra: Mapping[str, Any]) -> bool:
        """Whether an output's row has what was asked beside the answer."""
        return not self._is_given and any(name in extra for name in self.names)

    def kept(self, extra: Mapping[str, Any]) -> RowInput:
        """What an output's row has beside its answer."""
        base = Path() if self._base is None else Path(self._base)
        columns = Columns.from_config(self.config)
        builder = RowBuilder(columns, SamplingParams(), ImageColumn(columns.image, base))
        values = {name: value for name, value in extra.items() if value is not None}
        return self._input(builder.build(0, "", 0, values), values)

    def from_manifest(self, ids: Mapping[int, str]) -> Iterator[tuple[int, RowInput]]:
        """Yield what rows asked by their numbers in the run: those that have these ids.

        Afterwards ``note`` says why some are missing.

        Raises:
            ManifestError: a manifest was given, and cannot be read.
            ConfigError, RemoteError: the same, of one in an object store.
        """
        if not ids:
            return
        if self.config.source == "-":
            self.note = (
                "Prompts and images are not shown: which manifest they are in is not known. Name "
                "it with --manifest, or run with --keep-inputs."
            )
            return
        num_found = 0
        try:
            for row, values in self._manifest_rows():
                if ids.get(row.index) == row.id:
                    num_found += 1
                    yield row.index, self._input(row, values)
                if row.index >= max(ids):
                    break
        except (ManifestError, ConfigError, RemoteError) as error:
            if self._is_given:
                raise
            self.note = f"Prompts and images are not shown: {error}. Name it with --manifest."
            return
        if num_found < len(ids):
            self.note = (
                f"{self.config.source} is not what the run has read: of {len(ids):,} rows on this "
                f"page {len(ids) - num_found:,} are others there, and are shown without prompts "
                "and images."
            )

    def _manifest_rows(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        base = None if self._base is None or self._is_given else Path(self._base)
        manifest = open_manifest(self.config, SamplingParams(), image_base=base, model=self._model)
        if self.config.sample is not None:
            manifest.scan()
        yield from manifest.rows_with_values()

    def _input(self, row: Row, values: Mapping[str, Any]) -> RowInput:
        """Also of a row that has an error here, as where its image may not be fetched."""
        prompt = row.prompt
        if row.error is not None and isinstance(
            given := values.get(self.config.prompt_column), str
        ):
            prompt = given
        messages = row.messages or values.get(MESSAGES_COLUMN)
        if prompt is None and messages is not None:
            prompt = dump_json(messages)
        is_url = row.error is not None and row.error.code is ErrorCode.IMAGE_FORBIDDEN
        return RowInput(prompt, row.images, str(row.error) if is_url else None)
