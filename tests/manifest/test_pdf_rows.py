"""PDFs in a folder, a row a page, and their pages as pictures."""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from corpus_documents import document
from PIL import Image

from vlmbatch.config import ImageLimits, ManifestConfig, SamplingParams
from vlmbatch.config.pages import PageRanges
from vlmbatch.durable.row_keys import row_key
from vlmbatch.errors import ConfigError, ErrorCode, ManifestError, OutputError, RowError
from vlmbatch.images.decode import decode_image, decode_scaled, probe_image
from vlmbatch.images.loading import process
from vlmbatch.images.loading.page_counter import PageCounter
from vlmbatch.images.loading.protocol import ref_of, request_of
from vlmbatch.manifest import image_folder
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.types import ImageRef, Page

LIMITS = ImageLimits()


def opened(source: Path, *, longest_side: int | None = None, **options: Any) -> Manifest:
    config = ManifestConfig(str(source), "What?", **options)
    return open_manifest(config, SamplingParams(), longest_side=longest_side)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a").mkdir()
    (folder / "a/two.pdf").write_bytes(document(num_pages=2, pages=2))
    (folder / "b.jpg").touch()
    (folder / "many.PDF").write_bytes(document(num_pages=4000, pages=4000))
    red, blue = (Image.new("RGB", (72, 36), colour) for colour in ("red", "blue"))
    data = io.BytesIO()
    red.save(data, "PDF", save_all=True, append_images=[blue])
    (folder / os.fsdecode(b"z\xe9.pdf")).write_bytes(data.getvalue())
    return folder


def test_a_row_a_page(folder: Path) -> None:
    manifest = opened(folder)
    info = manifest.scan()
    assert info.extra_schema.names == ["doc", "page"]
    rows = list(manifest.rows())
    assert len(rows) == 2 + 1 + 4000 + 2
    found = {row.id: row.extra for row in rows if not row.id.startswith("many")}
    assert found == {
        "a/two.pdf#1": {"doc": "a/two.pdf", "page": 1},
        "a/two.pdf#2": {"doc": "a/two.pdf", "page": 2},
        "b.jpg": {},
        "z\\xe9.pdf#1": {"doc": "z\\xe9.pdf", "page": 1},
        "z\\xe9.pdf#2": {"doc": "z\\xe9.pdf", "page": 2},
    }
    assert rows[2 + 1 + 3999].id == "many.PDF#4000"
    assert len({row_key(row) for row in rows}) == len(rows)
    assert decode_image(rows[-1].images[0], LIMITS).getpixel((9, 9))[2] > 200  # type: ignore[index]


def test_pages_that_are_asked_for(folder: Path) -> None:
    manifest = opened(folder, pages="2,3998-", limit=4)
    manifest.scan()
    assert [row.id for row in manifest.rows()] == [
        *("a/two.pdf#2", "b.jpg", "many.PDF#2", "many.PDF#3998")
    ]
    assert list(PageRanges("3,1-2,2-5,9").of(6)) == [1, 2, 3, 4, 5]
    for text in ("", "0", "3-2", "a", "1--2", "-3", "1;2"):
        with pytest.raises(ConfigError, match="--pages"):
            PageRanges(text)


def test_a_manifest_names_a_page(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    documents = [f"{folder}/a/two.pdf{page}" for page in ("#2", "", "#3")]
    path.write_text("\n".join(["image", *documents]))
    manifest = opened(path, dpi=72)
    manifest.scan()
    good, whole, beyond = (row.images[0] for row in manifest.rows())
    assert good == ImageRef(str(folder / "a/two.pdf"), page=Page(2, 72))
    assert decode_image(good, LIMITS).size == (100, 200)
    with pytest.raises(RowError, match=r"a PDF: name a page of it, as in .*two\.pdf#1"):
        decode_image(whole, LIMITS)
    with pytest.raises(RowError, match="there is no such page: it has 2"):
        decode_image(beyond, LIMITS)


@pytest.mark.parametrize(
    ("page", "size"),
    [
        (Page(1), (209, 417)),  # 150 dpi
        (Page(1, dpi=72), (100, 200)),
        (Page(1, longest_side=1288), (644, 1288)),
        (Page(1, dpi=72, longest_side=7), (4, 7)),
    ],
)
def test_the_size_of_a_page(folder: Path, page: Page, size: tuple[int, int]) -> None:
    ref = ImageRef(str(folder / "a/two.pdf"), page=page)
    header = probe_image(ref, LIMITS)
    assert (header.format, header.width, header.height) == ("PDF", *size)
    assert decode_image(ref, LIMITS).size == size
    assert decode_scaled(ref, LIMITS, lambda *_: (1, 1))[0].size == size
    assert ref_of(request_of(ref), b"") == ref


def test_pages_are_drawn_from_many_threads(folder: Path) -> None:
    (path,) = folder.glob("z*.pdf")
    refs = [ImageRef(str(path), page=Page(1 + number % 2, 72)) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        pixels = list(threads.map(lambda ref: decode_image(ref, LIMITS).getpixel((9, 9)), refs))
    assert len({*pixels[::2]}) == len({*pixels[1::2]}) == 1


def test_longest_side_comes_from_the_session(folder: Path) -> None:
    manifest = opened(folder / "a", longest_side=64)
    manifest.scan()
    assert [row.images[0].page for row in manifest.rows()] == [Page(1, None, 64), Page(2, None, 64)]


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "has_pdf_library", lambda: False)
    with pytest.raises(ManifestError, match=r"pip install 'vlmbatch\[pdf\]'"):
        opened(folder).scan()


def test_more_pages_than_any_document_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").touch()
    monkeypatch.setattr(PageCounter, "count", lambda *_: 2**31)
    manifest = opened(tmp_path)
    manifest.scan()
    (row,) = manifest.rows()
    assert row.error is not None and "2147483648 pages, over the limit" in row.error.message


class TestCounter:
    """The process that opens documents may be crashed or held by one."""

    def test_whose_process_is_killed_costs_no_document(self, folder: Path) -> None:
        with closing(PageCounter(LIMITS)) as counter:
            for _ in range(2):
                assert counter.count(str(folder / "a/two.pdf")) == 2
                assert counter._process is not None
                counter._process.kill()
                assert counter.count(str(folder / "a/two.pdf")) == 2

    @pytest.mark.parametrize("pages", [-1, None])
    def test_a_crash_costs_one_document(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, pages: int | None
    ) -> None:
        with closing(PageCounter(LIMITS)) as counter:
            assert counter.count(str(folder / "a/two.pdf")) == 2
            with monkeypatch.context() as patch:
                patch.setattr(process, "receive_reply", lambda _: {"pages": pages})
                with pytest.raises(RowError, match="it sent what is no reply"):
                    counter.count(str(folder / "a/two.pdf"))
            assert counter.count(str(folder / "a/two.pdf")) == 2

    def test_one_that_cannot_be_started_ends_the_run(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", "/none/python")
        refused = pytest.raises(OutputError, match="cannot be kept running: /none/python")
        with closing(PageCounter(LIMITS)) as counter, refused:
            counter.count(str(folder / "a/two.pdf"))

    def test_a_hang_is_an_error_of_its_row(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def hang(*_: object) -> int:
            raise RowError(ErrorCode.IMAGE_TIMEOUT, "took longer")

        (tmp_path / "a.pdf").write_bytes(document())
        monkeypatch.setattr(PageCounter, "count", hang)
        manifest = opened(tmp_path)
        manifest.scan()
        (row,) = manifest.rows()
        assert row.error is not None and row.error.code == ErrorCode.IMAGE_TIMEOUT
