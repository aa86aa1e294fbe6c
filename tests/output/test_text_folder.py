"""Answers as files: what they are called, and what they may replace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlmbatch.errors import ErrorCode, OutputError, UsageError
from vlmbatch.output.text_folder import TextFolder
from vlmbatch.output.text_names import text_name
from vlmbatch.output.text_writer import TextWriter
from vlmbatch.types import Result


@pytest.mark.parametrize(
    ("row_id", "name"),
    [
        ("a/b.jpg", "a/b.txt"),
        ("a.b.PNG", "a.b.txt"),
        ("row-1", "row-1.txt"),
        ("v1.5", "v1.5.txt"),
        ("#3", "#3.txt"),
        ("a/b..jpg", "a/b..txt"),
        ("a/b.pdf#12", "a/b.md"),
        ("a/b.pdf", "a/b.pdf.txt"),
        ("caf\u00e9.jpg", "caf\u00e9.txt"),
    ],
)
def test_names(row_id: str, name: str) -> None:
    assert text_name(row_id) == name


@pytest.mark.parametrize(
    ("row_id", "says"),
    [
        ("/etc/a.jpg", "out of the folder"),
        ("../a.jpg", "out of the folder"),
        ("a/../../b", "out of the folder"),
        ("a//b", "empty"),
        ("./a", "empty or ."),
        ("", "empty"),
        ("a/", "empty"),
        ("a\0b", "NUL"),
        ("a.txt/b", "called like a file of answers"),
        ("x" * 300, "name of 304 bytes"),
        ("x/" * 2000 + "x", "4005 in all"),
    ],
)
def test_ids_that_make_no_name(row_id: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        text_name(row_id)


def checked(
    folder: Path, ids: Sequence[str], output: Path | None = None, *, overwrite: bool = False
) -> TextFolder:
    opened = TextFolder(folder, None if output is None else os.path.realpath(output))
    opened.check(lambda: ids, range(len(ids)), overwrite=overwrite)
    opened.claim()
    return opened


def test_answers_of_images_and_documents(tmp_path: Path) -> None:
    ids = ["a/1.jpg", "a/2.jpg", "b.pdf#1", "b.pdf#2", "c.pdf#1", "d"]
    folder = checked(tmp_path / "new/texts", ids)
    writer = TextWriter(folder)
    for index, row_id in enumerate(ids):
        code = ErrorCode.IMAGE_UNREADABLE if row_id in ("a/2.jpg", "b.pdf#2", "c.pdf#1") else None
        text = None if code else f"answer {index}"
        writer.write(Result(index, row_id, text, error_code=code))
    writer.finish()
    found = {
        str(path.relative_to(folder.path)): path.read_text()
        for path in folder.path.rglob("*")
        if path.is_file()
    }
    assert found == {
        "a/1.txt": "answer 0\n",
        "b.md": "answer 2\n\n<!-- page 2: no answer -->\n",
        "d.txt": "answer 5\n",
    }


def test_answers_of_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'"a.jpg" and "a.png" would both be a\.txt'):
        checked(tmp_path, ["a.jpg", "b.jpg", "a.png"])
    with pytest.raises(UsageError, match=r'"a.pdf" and "a.PDF" would both be a\.md'):
        checked(tmp_path, ["a.pdf#1", "a.pdf#2", "a.PDF#1"])


def test_a_document_is_not_divided(tmp_path: Path) -> None:
    ids = ["a.pdf#1", "a.pdf#2", "b.pdf#1"]
    for own in (range(1), range(1, 3)):
        with pytest.raises(UsageError, match=r"a\.pdf are divided .* before a\.pdf#2"):
            TextFolder(tmp_path, None).check(lambda: ids, own, overwrite=False)
    TextFolder(tmp_path, None).check(lambda: ids, range(2), overwrite=False)


def test_only_an_earlier_runs_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a caption of the user's")
    with pytest.raises(UsageError, match="is there already"):
        checked(tmp_path, ["a.jpg"], tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    checked(tmp_path, ["a.jpg"], tmp_path / "out.parquet", overwrite=True).write("a.txt", "ours")
    checked(tmp_path, ["a.jpg"], tmp_path / "out.parquet").write("a.txt", "again")
    assert (tmp_path / "a.txt").read_text() == "again\n"
    with pytest.raises(UsageError, match="is there already"):
        checked(tmp_path, ["a.jpg"], tmp_path / "other.parquet")


def test_a_file_that_has_its_answer_is_left_alone(tmp_path: Path) -> None:
    folder = checked(tmp_path, ["a"])
    folder.write("a.txt", "yes")
    before = (tmp_path / "a.txt").stat().st_ino
    folder.write("a.txt", "yes")
    assert (tmp_path / "a.txt").stat().st_ino == before


def test_nothing_is_left_of_a_file_that_cannot_be_put_in_its_place(tmp_path: Path) -> None:
    folder = checked(tmp_path / "texts", ["a"])
    (folder.path / "a.txt").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        folder.write("a.txt", "yes")
    assert [path.name for path in folder.path.iterdir()] == ["a.txt"]


def test_links_that_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "texts/a").symlink_to("../elsewhere")
    with pytest.raises(UsageError, match="out of the folder"):
        checked(tmp_path / "texts", ["a/b.jpg"])
    folder = checked(tmp_path / "texts", ["c/b.jpg"])
    (tmp_path / "texts/c").symlink_to("../elsewhere")
    with pytest.raises(OutputError, match="out of the folder"):
        folder.write("c/b.txt", "x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").symlink_to("../secret")
    checked(tmp_path / "texts", ["a"], overwrite=True).write("a.txt", "x")
    assert (tmp_path / "secret").read_text() == "kept"
    assert (tmp_path / "texts/a.txt").read_text() == "x\n"
