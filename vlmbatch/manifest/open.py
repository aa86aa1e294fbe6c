"""A manifest found, with what makes rows of its records."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ManifestError
from vlmbatch.images.buckets import AllowedBuckets
from vlmbatch.images.urls import AllowedDomains, ImageUrls
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.image_base import base_folder, read_base_url
from vlmbatch.manifest.image_column import ImageColumn
from vlmbatch.manifest.image_folder import ImageFolder
from vlmbatch.manifest.json_columns import json_columns
from vlmbatch.manifest.kinds import no_prompts
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.openai_batch import BatchRowBuilder
from vlmbatch.manifest.partitions import without_partitions
from vlmbatch.manifest.remote_sources import find_remote_files
from vlmbatch.manifest.request_files import holds_requests
from vlmbatch.manifest.rows import RowBuilder
from vlmbatch.manifest.scan import ManifestFile
from vlmbatch.manifest.schema import asked_columns
from vlmbatch.manifest.sources import find_files, stdin_file
from vlmbatch.remote.filesystem import scheme_of

_NO_DOMAINS = AllowedDomains()
_NO_BUCKETS = AllowedBuckets()


@dataclass(frozen=True, slots=True)
class _Found:
    """``folder`` or ``base_url``: where relative image paths start. ``buckets``: of images."""

    files: Sequence[ManifestFile]
    folder: Path
    base_url: str | None
    buckets: AllowedBuckets


def open_manifest(
    config: ManifestConfig,
    defaults: SamplingParams,
    *,
    image_base: Path | None = None,
    streaming: bool = False,
    stdin: BinaryIO | None = None,
    domains: AllowedDomains = _NO_DOMAINS,
    buckets: AllowedBuckets = _NO_BUCKETS,
    model: str = "",
    longest_side: int | None = None,
    needs_prompts: bool = True,
) -> Manifest:
    """Find the manifest's files, and their format if it is not given.

    Only first lines are read yet, and standard input is spooled; a stream's format is not looked
    for.

    ``image_base``: where relative image paths start; by default the manifest's folder, for
    standard input the working directory. ``streaming`` reads standard input as it comes, without
    ``scan``: duplicate ids and reserved column names are then errors of their rows. Images may be
    fetched from ``domains``, and from ``buckets`` of object stores; ``model`` answers OpenAI's
    requests. ``longest_side``: of pages of PDFs, in pixels. ``needs_prompts``: what is made of the
    rows needs a prompt of each.

    Raises:
        ManifestError: there is no manifest at ``config.source``, or none of a known kind.
        ConfigError: two columns have the same name, or a store's URL cannot be opened.
        OutputError: standard input does not fit the temporary folder.
        RemoteFailedError: the store of the manifest cannot be reached.
    """
    assert config.source == "-" or not streaming, "only standard input is streamed"
    if streaming and config.sample is not None:
        raise ManifestError(
            f"--sample {config.sample} needs the number of rows first, and standard input is read "
            "as it comes: name a file as MANIFEST, or for `run` a file as output"
        )
    columns = Columns.from_config(config, asked_columns(defaults, config.parse_json))
    fields = json_columns(config, defaults, columns)
    if fields is not None:
        columns = replace(columns, fields=frozenset(fields.schema.names))
    if config.source == "-":
        file = stdin_file(stdin or _stdin(), config.max_line_bytes, spool=not streaming)
        found = _Found([file], Path(), None, buckets)
    else:
        found = _find(config, columns, buckets)
    found = replace(found, folder=image_base or found.folder)
    is_images = any(isinstance(file, ImageFolder) for file in found.files)
    if is_images and needs_prompts and config.prompt is None and not config.sidecars:
        raise ManifestError(no_prompts(config))
    if config.image_base is not None:
        if is_images:
            raise ManifestError(
                f"{config.source} is images, which are where they are: --image-base "
                f"{config.image_base} is for the paths in a manifest"
            )
        found = _with_base(found, config.image_base, domains)
    builder: RowBuilder | BatchRowBuilder
    bare = without_partitions(found.files)
    if holds_requests(config, bare, columns, streaming=streaming):
        _refuse_for_requests(config, found.base_url)
        found = replace(found, files=bare)  # a request has no columns
        folder = None if found.base_url is not None else found.folder
        urls = ImageUrls(domains, folder, buckets=found.buckets)
        builder = BatchRowBuilder(defaults, urls, model, config.column_prefix)
    else:
        images = ImageColumn(
            columns.image,
            found.folder,
            base_url=found.base_url,
            urls=ImageUrls(domains, buckets=found.buckets),
            dpi=config.dpi,
            longest_side=longest_side,
        )
        builder = RowBuilder(
            *(columns, defaults, images),
            with_kept=streaming,
            prompt=config.prompt,
            needs_prompts=needs_prompts,
        )
    sample = None if config.sample is None else (config.sample, config.sample_seed)
    return Manifest(
        *(found.files, builder, config.limit, found.base_url or found.folder),
        streaming=streaming,
        sample=sample,
        fetches_images=bool(domains or found.buckets),
        json_columns=fields,
    )


def _find(config: ManifestConfig, columns: Columns, buckets: AllowedBuckets) -> _Found:
    if scheme_of(config.source) is None:
        return _Found(*find_files(config, columns.asked), None, buckets)
    files, remote_folder = find_remote_files(config, columns.asked)
    return _Found(files, Path(), f"{remote_folder}/", buckets.and_also(remote_folder))


def _with_base(found: _Found, image_base: str, domains: AllowedDomains) -> _Found:
    """Where images start as ``--image-base`` says."""
    base_url = read_base_url(image_base, domains)
    if base_url is None:
        return replace(found, folder=base_folder(image_base), base_url=None)
    if scheme_of(base_url) is None:
        return replace(found, base_url=base_url)
    return replace(found, base_url=base_url, buckets=found.buckets.and_also(base_url))


def _refuse_for_requests(config: ManifestConfig, base_url: str | None) -> None:
    """What is for manifests of columns alone, beside OpenAI's batch requests."""
    if config.keep_inputs:
        raise ManifestError(
            f"{config.source}: --keep-inputs is for manifests of columns; prompts and images "
            "of OpenAI's batch requests are in their bodies"
        )
    if config.parse_json:
        raise ManifestError(
            f"{config.source}: --parse-json is for manifests of columns; answers to OpenAI's "
            "batch requests are as their response_format says"
        )
    if config.image_base is not None and base_url is not None:
        raise ManifestError(
            f"{config.source}: --image-base {base_url} is for manifests of columns; OpenAI's "
            "batch requests name images by whole URLs"
        )
    if config.prompt is not None:
        raise ManifestError(
            f"{config.source}: --prompt is for rows of your own; OpenAI's batch requests bring "
            "theirs"
        )


def _stdin() -> BinaryIO:
    """Standard input under a buffer of our own.

    A thread that waits for a line holds the buffer's lock, and the interpreter wants that of
    ``sys.stdin`` when it ends.

    Raises:
        ManifestError: standard input is closed.
    """
    if sys.stdin is None:  # its number may be another file's by now
        raise ManifestError("standard input is closed: redirect it from a file, or name a manifest")
    try:
        return os.fdopen(os.dup(0), "rb")
    except OSError as error:
        raise ManifestError(f"standard input cannot be read: {error.strerror}") from error
