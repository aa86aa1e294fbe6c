from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.manifest.image_uses import ImageUses
from vlmbatch.manifest.open import open_manifest

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def last_uses(values):
    uses = ImageUses()
    for value in values:
        uses.add(value)
    found = uses.last_uses()
    return None if found is None else found.tolist()


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=30))
def test_each_row_knows_the_last_with_its_image(values):
    expected = [
        index if value is None else max(i for i, other in enumerate(values) if other == value)
        for index, value in enumerate(values)
    ]
    shared = expected != list(range(len(values)))
    assert last_uses(values) == (expected if shared else None)


@pytest.mark.parametrize("nothing", [None, 3, 2.5, {"bytes": None, "path": None}, {"x": 1}])
def test_rows_without_an_image_have_none_in_common(nothing):
    assert last_uses([nothing, "a", nothing, "b", nothing]) is None


def test_images_in_every_form():
    jpeg, other = b"\xff\xd8" + b"x" * 500, b"\xff\xd8" + b"x" * 499 + b"y"
    values = ["a.jpg", "a.jpg", {"path": "a.jpg"}, jpeg, {"bytes": jpeg, "path": "l"}]
    assert last_uses([*values, other, "b.jpg"]) == [2, 2, 2, 4, 4, 5, 6]


def scanned(path):
    manifest = open_manifest(ManifestConfig(str(path)), SamplingParams())
    manifest.scan()
    return None if manifest.last_image_uses is None else manifest.last_image_uses.tolist()


def test_a_folder_of_jsonl_is_looked_at_as_a_whole(tmp_path):
    line = '{{"prompt": "p", "image": "{}.jpg"}}\n'
    several = '{"prompt": "p", "image": ["b.jpg", "c.jpg"]}\n{"prompt": "p", "image": []}\n'
    (tmp_path / "0.jsonl").write_text(line.format("a") + line.format("b") + several + "{broken\n")
    (tmp_path / "1.jsonl").write_text(line.format("c") + line.format("a"))
    assert scanned(tmp_path) == [6, 2, 2, 3, 4, 5, 6]


def test_no_image_twice_costs_no_memory(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"prompt": "p", "image": "a.jpg"}\n{"prompt": "p"}\n')
    assert scanned(tmp_path / "m.jsonl") is None


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (pa.array(["a", "b", "a"]), [2, 1, 2]),
        (pa.array([b"a", b"b", b"a"]), [2, 1, 2]),
        (pa.array([["a", "c"], ["b"], ["a"]]), [2, 1, 2]),
        (pa.array([{"path": p, "bytes": b"j"} for p in "aba"]), [2, 1, 2]),
        (pa.array([{"path": None, "bytes": b} for b in (b"x", b"y", b"x")], HF_IMAGE), [2, 1, 2]),
        (pa.array([{"bytes": b} for b in (b"x", b"y", b"x")]), [2, 1, 2]),
        (pa.array([{"path": p, "bytes": None} for p in "abc"]), None),
        (pa.array([1, 1, 1]), None),
        (None, None),
    ],
)
def test_parquet_columns_of_every_kind(tmp_path, images, expected):
    columns = {"prompt": pa.array(["p"] * 3)} | ({} if images is None else {"image": images})
    pq.write_table(pa.table(columns), tmp_path / "m.parquet", row_group_size=2)
    assert scanned(tmp_path / "m.parquet") == expected


def test_labels_stand_for_embedded_images(tmp_path, monkeypatch):
    """Reading the bytes as well would double what a large manifest takes to look through."""
    images = pa.array([{"path": p, "bytes": p.encode() * 1000} for p in "aba"])
    pq.write_table(pa.table({"prompt": ["p"] * 3, "image": images}), tmp_path / "m.parquet")
    seen = []
    add = ImageUses.add

    def noted(self: ImageUses, value: object) -> None:
        seen.append(value)
        add(self, value)

    monkeypatch.setattr(ImageUses, "add", noted)
    assert scanned(tmp_path / "m.parquet") == [2, 1, 2]
    assert seen == [{"path": "a"}, {"path": "b"}, {"path": "a"}]
