"""``--write-text`` with a URL: what is put, when, and what it may replace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from in_process import call
from sample_model import MODEL

from vlmbatch.errors import UsageError
from vlmbatch.output.stored_texts import StoredTextFolder
from vlmbatch.output.text_folder import OWNERS
from vlmbatch.remote.errors import RemoteError
from vlmbatch.remote.filesystem import open_filesystem
from vlmbatch.stats import RunStats

URL = "memory://bucket/texts/"
IDS = ["a/1.jpg", "b", "c.pdf#1", "c.pdf#2"]


@pytest.fixture
def store() -> Iterator[dict[str, bytes]]:
    """What is at the URL, by name."""
    filesystem = fsspec.filesystem("memory")

    class Texts(dict[str, bytes]):
        def __missing__(self, name: str) -> bytes:
            content: bytes = filesystem.cat_file(f"/bucket/texts/{name}")
            return content

        def names(self) -> list[str]:
            found = filesystem.find("/bucket/texts")
            return sorted(path.removeprefix("/bucket/texts/") for path in found)

        def put(self, name: str, content: bytes) -> None:
            filesystem.pipe_file(f"/bucket/texts/{name}", content)

    yield Texts()
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def opened(
    tmp_path: Path, output: str = "out.parquet", *, overwrite: bool = False
) -> StoredTextFolder:
    here = tmp_path / f"texts of {output}"
    folder = StoredTextFolder(open_filesystem(URL), here, output)
    folder.check(lambda: IDS, range(len(IDS)), overwrite=overwrite)
    folder.claim()
    return folder


def test_what_changed_is_put(tmp_path: Path, store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(tmp_path)
    folder.write("a/1.txt", "one")
    folder.write("b.txt", "two")
    assert store.names() == [OWNERS]
    stats = RunStats()
    folder.put(stats)
    assert store.names() == [OWNERS, "a/1.txt", "b.txt"] and stats.transfer is None
    assert (store["a/1.txt"], store["b.txt"]) == (b"one\n", b"two\n")
    store.put("a/1.txt", b"as it was put")
    again = opened(tmp_path)
    for name, text in (("a/1.txt", "one"), ("b.txt", "other")):
        again.write(name, text)
    again.put(stats)
    assert (store["a/1.txt"], store["b.txt"]) == (b"as it was put", b"other\n")
    anew = opened(tmp_path, overwrite=True)
    anew.write("a/1.txt", "one")
    anew.put(stats)
    assert store["a/1.txt"] == b"one\n"


def test_a_put_that_fails_is_gone_on_with(
    tmp_path: Path, store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened(tmp_path)
    for number in range(5):
        folder.write(f"{number}.txt", "text")
    filesystem = folder._place.filesystem
    with monkeypatch.context() as patch:
        move = filesystem.mv
        patch.setattr(
            filesystem, "mv", lambda one, two: 1 / 0 if two.endswith("3.txt") else move(one, two)
        )
        with pytest.raises(RemoteError, match=r"3\.txt"):
            folder.put(RunStats())
    opened(tmp_path).put(RunStats())
    assert {f"{number}.txt" for number in range(5)} <= {*store.names()}


def test_files_of_others_are_not_replaced(tmp_path: Path, store) -> None:
    store.put("other.txt", b"precious")
    opened(tmp_path).write("b.txt", "two")
    store.put("b.txt", b"precious")
    opened(tmp_path)  # of the same output
    with pytest.raises(UsageError, match=r"b\.txt is there already, and not written by a run on"):
        opened(tmp_path, "another.parquet")
    opened(tmp_path, "another.parquet", overwrite=True)


def test_a_run(tmp_path: Path, store) -> None:
    """And the same command again, on a machine where nothing of it is left."""
    manifest = tmp_path / "m.jsonl"
    rows = [{"id": f"x/{n}", "prompt": f"USER: What is {n}? ASSISTANT:"} for n in range(3)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["run", manifest, "-m", MODEL, "-o", tmp_path / "out.parquet", "--max-tokens", 3]
    command += ["--write-text", URL, "-q", "--work-dir"]
    assert call([*command, tmp_path / "work"]) == 0
    assert store.names() == [OWNERS, "x/0.txt", "x/1.txt", "x/2.txt"]
    text = store["x/1.txt"]
    store.put("x/1.txt", b"changed")
    assert call([*command, tmp_path / "other"]) == 0
    assert store["x/1.txt"] == text
