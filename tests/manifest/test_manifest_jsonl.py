"""JSONL manifests: every way in which a line or a file can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ErrorCode, ManifestError
from vlmbatch.manifest.open import open_manifest

GOOD = b'{"prompt": "a"}'
INVALID = ErrorCode.MANIFEST_LINE_INVALID


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b"not json", "not JSON: Expecting value at column 1"),
        (b'{"prompt": "a"', "Expecting ',' delimiter at column 15"),
        (b'{"prompt": "a", ', "at column 1"),
        (b'{"prompt": ', "Expecting value at column 12"),
        (b'{"prompt": \r', "Expecting value at column 12"),
        (b'["prompt"]', "an array"),
        (b"17", "a number"),
        (b"null", "null"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": "a", "x": -Infinity}', "-Infinity"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 0xe9 at byte 16"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": "a", "x": {"\\uDC00": 1}}', "lone surrogate"),
        (b'{"prompt": "a", "x": ' + b"[" * 65 + b"]" * 65 + b"}", "64 levels"),
        (b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "64 levels"),
        (b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"prompt": "a", "x": 1e400}', "the number 1e400 is beyond a float64's range"),
        (b'{"prompt": "a", "x": [{"y": -1.5E+309}]}', "the number -1.5E+309 is beyond"),
        (b'{"prompt": "a", "prompt": "b"}', 'the key "prompt" is twice in one object'),
        (b'{"prompt": "a", "x": [{"y": 1, "\\u0079": 1}]}', 'the key "y" is twice'),
        (b'{"prompt": "' + b"a" * 300_000 + b'"}', "limit of 250000 bytes"),
        (b"\0" * 20, "not JSON"),
    ],
)
def test_bad_line_is_an_error_row(manifest, line, cause):
    opened = manifest(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n", max_line_bytes=250_000)
    assert opened.scan().num_rows == 3
    first, bad, last = opened.rows()
    assert first.error is None and last.error is None
    assert (bad.index, bad.line, bad.id) == (1, 3, "#1")
    assert bad.error is not None and bad.error.code is INVALID
    assert "m.jsonl:3: " in bad.error.message and cause in bad.error.message


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        (b"not json", ""),
        (b'[{"prompt": "a"}]', ". jq -c '.[]' makes such lines of an array"),
        (b"[", ". jq -c '.[]' makes such lines of an array"),
        (b'{"prompt": "a"', ". jq -c . puts an object on one line"),
        (b'\xff\xfe{\0"\0', ". This is UTF-16: iconv -f utf-16 -t utf-8 makes UTF-8 of it"),
        (
            gzip.compress(GOOD, mtime=0),
            ". This is gzip: let the name end in .jsonl.gz, or gzip -dc makes lines of it",
        ),
        (
            zstandard.compress(GOOD),
            ". This is zstd: let the name end in .jsonl.zst, or zstd -dc makes lines of it",
        ),
        (
            b"PAR1\x15\x04",
            ". This is Parquet: it is read from a file whose name ends in .parquet",
        ),
        (b"[" + b" " * 100 + b"1]", ". jq -c '.[]' makes such lines of an array"),
    ],
)
@pytest.mark.parametrize("passed", ["scan", "rows"])
def test_first_line_that_is_no_object_refuses_the_manifest(manifest, line, remedy, passed):
    opened = manifest(line + b"\n" + GOOD, max_line_bytes=80)
    with pytest.raises(ManifestError, match=r"m\.jsonl:1: .*one JSON object a line") as caught:
        opened.scan() if passed == "scan" else list(opened.rows())
    assert str(caught.value).endswith(f'"a.jpg"}}{remedy}')


@pytest.mark.parametrize("line", [b'{"prompt": "caf\xe9"}', b'{"prompt": "' + b"a" * 200 + b'"}'])
def test_first_line_that_is_a_broken_object_is_an_error_row(manifest, line):
    opened = manifest(line + b"\n" + GOOD, max_line_bytes=100)
    assert opened.scan().num_rows == 2
    assert [row.error is None for row in opened.rows()] == [False, True]


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a"}\n{"prompt": "b"}',
        b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n',
        b'\n  \r\n{"prompt": "a"}\n\n\t\n{"prompt": "b"}\n\n',
        b' {"prompt": "a"} \n{"prompt": "b"}\x0c\n'.replace(b"\x0c", b"\t"),
    ],
)
def test_line_ends_marks_and_blank_lines_are_accepted(manifest, content):
    opened = manifest(content)
    info = opened.scan()
    assert info.num_rows == 2
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert [(row.prompt, row.error) for row in opened.rows()] == [("a", None), ("b", None)]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n "])
def test_empty_manifest_is_valid(manifest, content):
    opened = manifest(content)
    info = opened.scan()
    assert (info.num_rows, info.extra_schema.names) == (0, [])
    assert list(opened.rows()) == []


def test_escaped_surrogate_pair_is_a_character(manifest):
    opened = manifest(b'{"prompt": "\\ud83d\\ude00"}')
    opened.scan()
    assert next(opened.rows()).prompt == "😀"


def test_numbers_are_what_they_say(manifest):
    line = b'{"prompt": "a", "x": [1e308, -0.0, 5e-324, 12345678901234567890123, 1E2, 1e-400]}'
    (row,) = manifest(line).rows()
    assert row.extra["x"] == [1e308, 0.0, 5e-324, 12345678901234567890123, 100.0, 0.0]
    assert [type(number) for number in row.extra["x"]] == [float, float, float, int, float, float]


def test_brackets_in_text_are_no_nesting(manifest):
    (row,) = manifest([{"prompt": "[" * 500, "x": [[1]] * 500}]).rows()
    assert row.error is None


def test_hundred_megabyte_line_takes_bounded_memory(tmp_path):
    path = tmp_path / "m.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'\n{"prompt": "')
        for _ in range(100):
            file.write(b"a" * 2**20)
        file.write(b'"}\n' + GOOD + b"\n")
    opened = open_manifest(ManifestConfig(str(path), max_line_bytes=2**20), SamplingParams())
    tracemalloc.start()
    try:
        assert opened.scan().num_rows == 3
        errors = [row.error for row in opened.rows()]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20
    assert errors[0] is None and errors[2] is None
    assert errors[1] is not None and errors[1].code is INVALID


@pytest.mark.parametrize("limit", [1, 14, 15])
def test_line_limit_counts_the_content(manifest, limit):
    opened = manifest(b"{}\n" + GOOD + b"\n" + GOOD, max_line_bytes=limit + 1)
    errors = [row.error.code for row in opened.rows() if row.error is not None]
    assert errors[1:] == ([] if limit >= len(GOOD) - 1 else [INVALID] * 2)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)]
)
class TestCompressed:
    CONTENT = b"".join(b'{"prompt": "%d"}\n' % number for number in range(20_000))

    def test_same_rows_and_digest_as_plain(self, manifest, suffix, compress):
        half = len(self.CONTENT) // 2
        packed = compress(self.CONTENT[:half]) + compress(self.CONTENT[half:])  # two members
        opened = manifest(packed, name="m.jsonl" + suffix)
        info = opened.scan()
        assert info.num_rows == 20_000
        assert info.sha256 == hashlib.sha256(self.CONTENT).hexdigest()
        assert [row.prompt for row in opened.rows()] == [str(n) for n in range(20_000)]

    def test_cut_short_is_refused(self, manifest, suffix, compress):
        packed = compress(self.CONTENT)
        for keep in (len(packed) - 3, len(packed) // 2):
            with pytest.raises(ManifestError, match=r"cut short: fetch it or compress it again$"):
                manifest(packed[:keep], name="m.jsonl" + suffix).scan()

    def test_not_compressed_is_refused(self, manifest, suffix, compress):
        with pytest.raises(ManifestError, match=r"cannot be decompressed: .*compress it again"):
            manifest(GOOD, name="m.ndjson" + suffix).scan()

    def test_empty(self, manifest, suffix, compress):
        assert manifest(compress(b""), name="m.jsonl" + suffix).scan().num_rows == 0


@pytest.mark.parametrize("log", [28, 31])
@pytest.mark.parametrize("frames", [1, 2])
def test_a_window_that_is_too_large_is_named(manifest, log, frames):
    """Nothing is wrong with the file."""
    settings = zstandard.ZstdCompressionParameters(window_log=log, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    packed = compressor.compress(GOOD + b"\n") + compressor.flush()
    packed = zstandard.compress(GOOD + b"\n") * (frames - 1) + packed
    with pytest.raises(
        ManifestError, match=rf"window of {2**log // 2**20} MiB .*--long={log}"
    ) as e:
        manifest(packed, name="m.jsonl.zst").scan()
    assert "again with --long=27" in str(e.value) and "damaged" not in str(e.value)


def test_the_largest_window_is_read(manifest):
    settings = zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    packed = compressor.compress(GOOD + b"\n") + compressor.flush()
    assert manifest(packed, name="m.jsonl.zst").scan().num_rows == 1


_PIECES = [
    *(bytes([byte]) for byte in b'{}[]:,1"\n\r \0\xff'),
    *(GOOD, GOOD + b"\n", b'"prompt"', b'{"x": {}}\n', b"1e999", b"\\ud800", b"\xef\xbb\xbf"),
]
_bytes = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(_PIECES), max_size=12).map(b"".join),
    st.lists(
        st.dictionaries(
            st.sampled_from(["prompt", "image", "id", "seed", "stop", "messages", "x", "text"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(st.text(max_size=2), inner, max_size=2)
                ),
                max_leaves=3,
            ),
            max_size=4,
        ).map(lambda item: json.dumps(item).encode() + b"\n"),
        max_size=5,
    ).map(b"".join),
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=_bytes)
def test_any_bytes_give_a_row_for_every_line_or_one_refusal(tmp_path: Path, content: bytes):
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = sum(1 for line in lines if line and not line.isspace())
    config = ManifestConfig(str(path), max_line_bytes=40)
    opened = open_manifest(config, SamplingParams())
    try:
        assert opened.scan().num_rows == expected
        assert [row.index for row in opened.rows()] == list(range(expected))
    except ManifestError as error:
        assert "m.jsonl:" in str(error)
    config = ManifestConfig("-", max_line_bytes=40)
    stream = open_manifest(config, SamplingParams(), streaming=True, stdin=io.BytesIO(content))
    try:
        assert [row.index for row in stream.rows()] == list(range(expected))
    except ManifestError as error:
        assert "<stdin>:" in str(error)
