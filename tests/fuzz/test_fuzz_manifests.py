"""Manifests of any bytes: refused or run, never a traceback, every row exactly once."""

from __future__ import annotations

import codecs
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import ERROR_ROWS, MODEL, OK, REFUSED, damaged, examples, json_values, run_manifest
from hypothesis import given
from hypothesis import strategies as st
from in_process import call
from PIL import ExifTags, Image

pytestmark = pytest.mark.usefixtures("free_model")

PICTURE = Image.linear_gradient("L").resize((20, 12)).convert("RGB")


def encoded(kind: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


ROTATED = Image.Exif()
ROTATED[ExifTags.Base.Orientation] = 6
PICTURES = {
    "BMP": encoded("BMP"),
    "GIF": encoded("GIF", save_all=True, append_images=[PICTURE.rotate(180)]),
    "JPEG": encoded(
        "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    ),
    "PNG": encoded("PNG"),
    "PNG 16": encoded("PNG", Image.new("I;16", (9, 9), 30_000)),
    "PNG P": encoded("PNG", PICTURE.quantize(9), transparency=b"\0\xff"),
    "TIFF": encoded("TIFF", compression="tiff_lzw"),
    "TIFF CMYK": encoded("TIFF", PICTURE.convert("CMYK")),
    "WEBP": encoded("WEBP"),
    "WEBP A": encoded("WEBP", PICTURE.convert("RGBA"), lossless=True),
}
ROW = {
    "id": "a",
    "prompt": "USER: <image>\nWhat number is written? ASSISTANT:",
    "image": "a.png",
    "max_tokens": 3,
    "stop": ["a", "b"],
    "note": {"weight": 1.5, "tags": ["x", None]},
}
NAMES = [
    *ROW,
    "messages",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "max_pixels",
    "other",
    "status",
    "",
]

rows = st.dictionaries(st.sampled_from(NAMES), json_values, max_size=6).map(
    lambda values: {"prompt": "Hello.", **values}
)
chats = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "x"])}
        | {"content": st.text(max_size=9) | json_values}
    ),
    max_size=3,
).map(lambda messages: {"messages": messages})
lines = (
    (rows | chats | json_values).map(lambda row: json.dumps(row).encode("utf-8", "surrogatepass"))
    | damaged({"row": json.dumps(ROW).encode(), "utf-8": '{"prompt": "é😀", "k": "ü"}'.encode()})
    | st.binary(max_size=40)
    | st.sampled_from([b"", b" ", b"{}", b"[" * 3000, b'{"a":' * 3000, b"\r", b"1" * 5000, b"NaN"])
)


def count_rows(content: bytes) -> int:
    """Lines that are not blank, by another road than the reader's."""
    lines = content.split(b"\n")
    lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
    return sum(not line.isspace() and line != b"" for line in lines)


def check(manifest: Path, expected_rows: int | None) -> None:
    """Run and validate agree, and if it is not refused, every row came out once, in order."""
    status, output = run_manifest(manifest)
    errors = manifest.parent / "errors"
    command = ["validate", manifest, "-m", MODEL, "--errors", errors, "-q"]
    assert call([*command, "--decode-images", "--image-workers", 0]) == status
    if status == REFUSED:
        assert not output.exists()
        return
    records = pq.read_table(output).to_pylist()
    output.unlink()
    assert [record["row_index"] for record in records] == list(range(len(records)))
    assert expected_rows in (None, len(records))
    assert len({record["id"] for record in records}) == len(records)
    bad = [record for record in records if record["status"] == "error"]
    assert status == (ERROR_ROWS if bad else OK)
    found = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [(row["row_index"], row["error_code"], row["error_message"]) for row in found] == [
        (record["row_index"], record["error_code"], record["error_message"]) for record in bad
    ]


def parquet(records: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), buffer, **options)
    return buffer.getvalue()


def check_bytes(name: str, content: bytes, expected_rows: int | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, name)
        manifest.write_bytes(content)
        (manifest.parent / "a.png").write_bytes(PICTURES["PNG"])
        check(manifest, expected_rows)


@examples(15)
@given(st.binary(max_size=200))
def test_any_bytes_as_jsonl(content: bytes) -> None:
    check_bytes("m.jsonl", content, count_rows(content))


@examples(30)
@given(st.lists(lines, max_size=6), st.booleans())
def test_odd_lines(found: list[bytes], good_first: bool) -> None:
    content = b"\n".join(([json.dumps(ROW).encode()] if good_first else []) + found)
    check_bytes("m.jsonl", content, count_rows(content))


@examples(15)
@given(st.lists(damaged(PICTURES), max_size=8))
def test_damaged_pictures(pictures: list[bytes]) -> None:
    images = [{"bytes": data, "path": "a"} for data in pictures]
    rows = [{"prompt": ROW["prompt"], "image": image} for image in images]
    check_bytes("m.parquet", parquet(rows), len(rows))


RECORDS = [
    {
        "id": f"row {index}",
        "prompt": ROW["prompt"] if index % 2 else "Hello.",
        "image": {"bytes": PICTURES["PNG"], "path": "a.png"} if index % 2 else None,
        "weight": index / 2,
        "tags": ["x", None][: index % 3],
    }
    for index in range(12)
]
TABLES = {
    "plain": parquet(RECORDS, compression="none", row_group_size=5),
    "snappy": parquet(RECORDS, compression="snappy", data_page_version="2.0"),
    "zstd": parquet(RECORDS, compression="zstd", use_dictionary=False, write_statistics=False),
    "text": parquet([{"prompt": record["prompt"]} for record in RECORDS], compression="none"),
}


@examples(30)
@given(damaged(TABLES))
def test_damaged_parquet(content: bytes) -> None:
    check_bytes("m.parquet", content)
