"""What a work folder knows of its run: ``run.json``."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vlmbatch import __version__
from vlmbatch.durable.durable_file import (
    FILES,
    DurableFile,
    FileSystem,
    open_own,
    output_error,
    publish,
    reported,
)
from vlmbatch.durable.journal_frames import RUN_ID_BYTES
from vlmbatch.errors import OutputError

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run on an output. ``id`` tells it from an earlier run with the same settings."""

    id: str  # 32 hexadecimal digits
    fingerprint: str
    settings: dict[str, Any]  # what the fingerprint is of, as JSON gives it back
    num_rows: int
    version: str
    started: str  # ISO 8601, UTC
    about: dict[str, Any] = field(default_factory=dict)  # for people: names, the command
    state: Literal["running", "complete"] = "running"

    @classmethod
    def new(
        cls,
        settings: Mapping[str, Any],
        fingerprint: str,
        num_rows: int,
        about: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """A run that starts now."""
        return cls(
            secrets.token_hex(RUN_ID_BYTES),
            fingerprint,
            _as_json(settings),
            num_rows,
            __version__,
            datetime.now(UTC).isoformat(timespec="seconds"),
            _as_json(about or {}),
        )

    @property
    def run_id(self) -> bytes:
        """``id`` as the journal's segments carry it."""
        return bytes.fromhex(self.id)

    def completed(self) -> RunRecord:
        return replace(self, state="complete")

    def changes(self, settings: Mapping[str, Any]) -> list[str]:
        """How ``settings`` differ from this run's, each as ``name: old -> new``."""
        return list(_changes("", self.settings, _as_json(settings)))


def read_record(path: Path) -> RunRecord | None:
    """The record at ``path``; None when there is no file.

    Raises:
        OutputError: the file cannot be read, is damaged, or was written by a later version.
    """
    try:
        with os.fdopen(open_own(path, os.O_RDONLY, follow=True), "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise output_error(path, error) from error
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    return parse_record(raw, str(path))


def parse_record(raw: bytes, name: str) -> RunRecord:
    """The record that ``record_bytes`` has made; ``name`` is for messages.

    Raises:
        OutputError: it is damaged, or was written by a later version.
    """
    try:
        values = json.loads(raw)
        if values.pop("format") != _FORMAT:
            raise OutputError(
                f"{name} was written by another version of vlmbatch ({values['version']}). Finish "
                "the run with that version, or run with --overwrite to start anew"
            )
        record = RunRecord(**values)
        if len(record.run_id) != RUN_ID_BYTES:
            raise ValueError(f"run id {record.id}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{name} is damaged ({error!r}): run with --overwrite to start anew"
        ) from error
    return record


def recorded_id(raw: bytes) -> str | None:
    """The id of the run whose ``record_bytes`` these are, of any version; None where of none."""
    try:
        run_id = json.loads(raw)["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return run_id if isinstance(run_id, str) else None


def record_bytes(record: RunRecord) -> bytes:
    """The content of ``run.json``."""
    return json.dumps({"format": _FORMAT, **asdict(record)}, indent=2).encode()


def write_record(path: Path, record: RunRecord, files: FileSystem = FILES) -> None:
    """Put ``record`` in the place of what is at ``path``: after a crash, one or the other.

    Raises:
        OutputError: the file system refuses.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with reported(path):
        with DurableFile(temporary, files) as file:
            file.write(record_bytes(record))
            file.sync()
        publish(temporary, path, "run_record", files)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return values


def _changes(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{name}.{key}" if name else key
            found += _changes(inner, old.get(key), new.get(key))
        return found
    return [] if old == new else [f"{name}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
