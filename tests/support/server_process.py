"""``vlmbatch serve`` as a process of its own, with the sample model."""

from __future__ import annotations

import base64
import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import real_command
from fast_command import Command

ROOT = Path(__file__).parents[2]
MODEL = "samples/tiny-llava"
NUMBER = "What number is written?"  # on the image below: 92
IMAGE = "samples/images/1001000001.jpg"


@dataclass
class ServerProcess:
    """A server that accepts connections at ``url``."""

    process: Command
    url: str

    def metric(self, name: str, prefix: str = "vlmbatch") -> float:
        """One value of ``/metrics``."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            text = response.read().decode()
        found = re.search(rf"^{prefix}_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"no {name} in\n{text}"
        return float(found[1])


@contextmanager
def serving(*arguments: str, **variables: str) -> Iterator[ServerProcess]:
    """Start the server on a free port, and kill it at the end if it still runs."""
    process = real_command.start(
        *("serve", "-m", MODEL, "--port", "0", *arguments), variables=variables
    )

    def url() -> str:
        found = re.search(r"serving .* on (http://\S+)\n", process.stderr)
        return found[1] if found else ""

    try:
        process.wait_until(lambda: url() != "")
        yield ServerProcess(process, url())
    finally:
        if not process.ended():
            process.send_signal(signal.SIGKILL)
        process.wait()


def data_url(image: str = IMAGE) -> str:
    """A file of the repository as a data: URL."""
    return "data:image/jpeg;base64," + base64.b64encode((ROOT / image).read_bytes()).decode()


def user_message(text: str = NUMBER, *images: str) -> dict[str, Any]:
    """A user's message about images given as URLs."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in images]
    return {"role": "user", "content": parts}


def chat_body(**fields: Any) -> dict[str, Any]:
    """A body of ``/v1/chat/completions`` that is answered with "92"."""
    message = user_message(NUMBER, data_url())
    return {"model": MODEL, "messages": [message], "temperature": 0, **fields}


def answered_rows() -> list[dict[str, Any]]:
    """Rows of the sample manifest that have an answer, their questions without a template."""
    rows = []
    for line in (ROOT / "samples/manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        question = re.fullmatch(r"USER: <image>\n(.*) ASSISTANT:", row["prompt"])
        if row["answer"] is not None and question is not None and isinstance(row["image"], str):
            url = data_url(f"samples/{row['image']}")
            rows.append({**row, "question": question[1], "url": url})
    return rows
