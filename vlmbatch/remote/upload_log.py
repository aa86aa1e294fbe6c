"""Uploads that are under way, so that a later process can go on with them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class UploadLog:
    """Uploads that are under way, by URL, in a JSON file: of each its id and what it is of.

    Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def get(self, url: str) -> dict[str, Any] | None:
        found = self._read().get(url)
        return found if isinstance(found, dict) else None

    def set(self, url: str, upload: dict[str, Any] | None) -> None:
        """Note one, or that there is none any more.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            uploads = self._read()
            uploads.pop(url, None)
            if upload is not None:
                uploads[url] = upload
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            temporary.touch(0o600)  # the id of Google's is a key to it
            temporary.write_text(json.dumps(uploads))
            temporary.replace(self.path)

    def _read(self) -> dict[str, Any]:
        try:
            uploads = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):  # cut off by a crash: at worst all is sent again
            return {}
        return uploads if isinstance(uploads, dict) else {}
