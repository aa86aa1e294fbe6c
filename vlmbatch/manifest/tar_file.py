"""WebDataset tars: files whose names differ in their ends alone are one row.

The format is that of the ``webdataset`` library: ``a/000.jpg``, ``a/000.txt`` and ``a/000.json``,
one after another, are the row ``a/000``.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, ManifestError, RowError
from vlmbatch.log import logger
from vlmbatch.manifest.huggingface import IMAGE_TYPE
from vlmbatch.manifest.ids import NamedRowError
from vlmbatch.manifest.image_tree import is_image_name
from vlmbatch.manifest.scan import Record, Scan
from vlmbatch.manifest.second_pass import SeenFile
from vlmbatch.manifest.sidecars import column_value
from vlmbatch.manifest.stored_file import StoredFile

_TEXTS = ("txt", "text", "json", "cls", "caption", "prompt", "md", "html")
_BLOCK_BYTES = 512
_SHOWN_KINDS = 5

_Sample = list[tuple[str, tarfile.TarInfo]]  # suffix without its first dot, and the member


class TarFile:
    """One tar, read sample by sample. A text has at most ``max_bytes``.

    Images come as bytes, of the members whose suffix is one of an image: as lists, where any sample
    has several.
    """

    def __init__(self, stored: StoredFile, max_bytes: int) -> None:
        self.name = stored.name
        self._stored = stored
        self._max_bytes = max_bytes
        self._seen: SeenFile | None = None  # by scan
        self._starts = array("q")  # by scan: where each sample begins in the file
        self._several = False  # by scan: whether any sample has several images
        self._num_rows: int | None = None

    def scan(self, scan: Scan, limit: int | None) -> str:
        """Gather ids and columns of at most ``limit`` samples; the digest of the bytes they take.

        Raises:
            ManifestError: no tar, or one that is damaged or cut short, or a column's name is
                reserved.
        """
        left_out: Counter[str] = Counter()
        end = 0
        state = self._stored.state()
        with self._stored.open() as file:
            samples = islice(_samples(file, 0, self.name, left_out), limit)
            for row, (key, sample, sample_end) in enumerate(samples, 1):
                end = sample_end
                self._starts.append(sample[0][1].offset)
                values = self._values(file, key, sample, None)
                scan.add_row(values)
                if isinstance(values, dict):
                    others = {name: each for name, each in values.items() if name != "image"}
                    size = sum(member.size for _, member in sample)
                    scan.extras.add_values(others, size, f"{self.name}:{row}")
                    self._several |= isinstance(values.get("image"), list)
            image_type = pa.list_(IMAGE_TYPE) if self._several else IMAGE_TYPE
            scan.extras.add_schema(pa.schema([("image", image_type)]), self.name)
        self._seen = SeenFile(self._stored, state, end)
        self._num_rows = len(self._starts)
        if left_out:
            kinds = ", ".join(f"{n} {kind}" for kind, n in left_out.most_common(_SHOWN_KINDS))
            logger.info("%s: members of other kinds are left out (%s)", self.name, kinds)
        return self._seen.digest

    def records(self, columns: Collection[str] | None = None, skip: int = 0) -> Iterator[Record]:
        """Yield (number from 1, values). The first ``skip`` samples are not read.

        Raises:
            ManifestError: as ``scan``, or the file is no longer what it has seen.
        """
        if self._num_rows is not None and skip >= self._num_rows:
            return
        start = self._starts[skip] if self._num_rows is not None else 0
        behind = skip if self._num_rows is None else 0
        with self._stored.open() as file:
            samples = _samples(file, start, self.name, Counter())
            stop = None if self._num_rows is None else self._num_rows - skip + behind
            for row, (key, sample, _) in enumerate(islice(samples, behind, stop), skip + 1):
                values = self._values(file, key, sample, columns)
                if self._seen is not None:
                    self._seen.check()
                yield row, values

    def _values(
        self, file: BinaryIO, key: str, sample: _Sample, columns: Collection[str] | None
    ) -> dict[str, Any] | RowError:
        values: dict[str, Any] = {"id": key}
        images = []
        try:
            for suffix, member in sample:
                name = "image" if is_image_name(f"a.{suffix}") else suffix
                if columns is not None and name not in columns:
                    continue
                where = f"{self.name}: {member.name}"
                if name == "image":
                    data = _read(file, member, ImageLimits().max_bytes, where)
                    images.append({"bytes": data, "path": f"{key}.{suffix}"})
                elif name in values:
                    raise _invalid(f"{where}: the sample has two members of this suffix")
                else:
                    data = _read(file, member, self._max_bytes, where)
                    values[name] = column_value(member.name, data, where)
        except RowError as error:
            return NamedRowError(error, key)
        except OSError as error:
            raise ManifestError(f"{self.name}: cannot be read: {error.strerror}") from error
        if images:
            values["image"] = images if len(images) > 1 or self._several else images[0]
        return values


def _samples(
    file: BinaryIO, start: int, name: str, left_out: Counter[str]
) -> Iterator[tuple[str, _Sample, int]]:
    """Yield key, members and end of each sample from ``start`` on; what is none is counted."""
    key, sample, end = "", _Sample(), start
    for member in _members(file, start, name):
        folder, slash, last = member.name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        if not stem or member.isdir():
            continue
        if not dot:
            left_out["without an end such as .jpg"] += 1
            continue
        suffix = suffix.lower()
        own = f"{folder}{slash}{stem}".removeprefix("./")
        own = os.fsencode(own).decode(errors="backslashreplace")
        if sample and own != key:
            yield key, sample, end
            sample = []
        is_read = is_image_name(f"a.{suffix}") or suffix.rpartition(".")[2] in _TEXTS
        if is_read and (member.isreg() or member.issym() or member.islnk()):
            key = own
            sample.append((suffix, member))
        else:
            left_out[f".{suffix}"] += 1
        end = member.offset_data + -(-member.size // _BLOCK_BYTES) * _BLOCK_BYTES
    if sample:
        yield key, sample, end


def _members(file: BinaryIO, start: int, name: str) -> Iterator[tarfile.TarInfo]:
    """The members from ``start`` on, up to the blocks that end a tar."""
    position = start
    try:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or all would be held
                position = tar.offset
                yield member
            position = tar.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise ManifestError(
            f"{name}: is no tar, or damaged or cut short behind byte {position}: {error}"
        ) from error
    # The library takes anything that is no header for the end.
    file.seek(position - _BLOCK_BYTES if position else 0)
    tail = file.read(2 * _BLOCK_BYTES)
    if bytes(_BLOCK_BYTES) not in (tail[:_BLOCK_BYTES], tail[_BLOCK_BYTES:]):
        raise ManifestError(
            f"{name}: is damaged or cut short at byte {position}: neither a member nor the end of "
            "a tar is there: fetch it again"
        )


def _read(file: BinaryIO, member: tarfile.TarInfo, max_bytes: int, where: str) -> bytes:
    if not member.isreg():  # what it leads to may stand anywhere in the tar, or nowhere
        raise _invalid(
            f"{where}: a link to {member.linkname}, which is not followed: pack the files "
            "themselves (tar --dereference --hard-dereference)"
        )
    if member.size > max_bytes:
        raise _invalid(f"{where}: {member.size} bytes, over the limit of {max_bytes} bytes")
    if member.issparse():
        raise _invalid(f"{where}: a sparse file")
    position = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(position)
    return data


def _invalid(message: str) -> RowError:
    return RowError(ErrorCode.MANIFEST_LINE_INVALID, message)
