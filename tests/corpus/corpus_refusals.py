"""Manifests and checkpoints that are refused as a whole, and what the message must say."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

# Unpickled, it creates a file of this name in the working directory.
PICKLE_RAN = "a-pickle-was-run"
PICKLE = f"cbuiltins\nopen\n(S'{PICKLE_RAN}'\nS'w'\ntR.".encode()
CODE_RAN = "remote-code-was-run"


@dataclass(frozen=True)
class Refusal:
    """``manifest``: a path below the corpus. ``says``: parts of the message."""

    manifest: str
    says: tuple[str, ...]


REFUSALS = (
    Refusal("manifests/missing.jsonl", ("missing.jsonl", "no such manifest")),
    Refusal("manifests/folder", ("manifests/folder", "no file that ends in")),
    Refusal("manifests/utf-16.csv", ("utf-16.csv:1:", "the header is not UTF-8")),
    Refusal("manifests/repeated.csv", ("repeated.csv:1:", 'two columns are called "prompt"')),
    Refusal("manifests/reserved.tsv", ("reserved.tsv:2", '"status"', "reserves")),
    Refusal("manifests/cut.tar", ("cut.tar", "cut short")),
    Refusal("manifests/out-of-order.tar", ('duplicate id "a"', ".tar:1", ".tar:3")),
    Refusal("manifests/{a,b}.tar", ("manifests/a.tar", "no such manifest")),
    Refusal("images", ("corpus/images", "images without prompts", "--prompt")),
    Refusal("manifests/*.png", ("*.png", "the pattern matches no image")),
    Refusal("manifests/notes.txt", ("notes.txt", "of no known kind")),
    Refusal("manifests/not-json.jsonl", ("not-json.jsonl:1:", "not JSON")),
    Refusal("manifests/array.jsonl", ("array.jsonl:1:", "an array")),
    Refusal("manifests/binary.jsonl", ("binary.jsonl:1:", "not UTF-8")),
    Refusal("manifests/brackets.jsonl", ("brackets.jsonl:1:", "nested arrays")),
    Refusal(
        "manifests/duplicate-id.jsonl",
        ('duplicate id "a"', "duplicate-id.jsonl:2", "duplicate-id.jsonl:4"),
    ),
    Refusal("manifests/index-as-id.jsonl", ('duplicate id "1"', ".jsonl:1", ".jsonl:2")),
    Refusal("manifests/reserved.jsonl", ("reserved.jsonl:2", '"status"', "reserves")),
    Refusal("manifests/reserved.parquet", ("reserved.parquet", '"text"', "reserves")),
    Refusal("manifests/truncated.parquet", ("truncated.parquet", "no valid footer")),
    Refusal("manifests/no-footer.parquet", ("no-footer.parquet", "no valid footer")),
    Refusal("manifests/not.parquet", ("not.parquet", "no valid footer")),
    Refusal("manifests/encrypted.parquet", ("encrypted.parquet", "is encrypted")),
)


def refused_manifests() -> Iterator[tuple[str, bytes]]:
    """Every manifest of ``REFUSALS`` that exists."""
    row, other = {"id": "a", "prompt": "Hello."}, {"id": "b", "prompt": "Hello."}
    yield "folder/notes.txt", b"Not a manifest.\n"
    yield "notes.txt", b"Not a manifest.\n"
    yield "not-json.jsonl", b"id,prompt\na,Hello.\n"
    yield "array.jsonl", b'[{"prompt": "Hello."}]\n'
    yield "binary.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\n"
    yield "brackets.jsonl", b"[" * 10_000 + b"\n"
    yield "duplicate-id.jsonl", _lines(other, row, {"prompt": "No id."}, row)
    yield "index-as-id.jsonl", _lines({"id": "1", "prompt": "Hello."}, {"prompt": "Hello."})
    yield "reserved.jsonl", _lines(row, other | {"status": "new"})
    yield "reserved.parquet", parquet([row | {"text": "taken"}])
    whole = parquet([row, other])
    yield "truncated.parquet", whole[:-20]
    yield "no-footer.parquet", whole[: len(whole) // 4]
    yield "not.parquet", _lines(row)
    yield "encrypted.parquet", b"PARE" + bytes(100) + b"PARE"

    members = ("a.txt", "b.txt", "a.json")
    yield "cut.tar", _tar(*members)[:1300]
    yield "out-of-order.tar", _tar(*members)
    yield "utf-16.csv", "prompt,image\nHello.,a.jpg\n".encode("utf-16")
    yield "repeated.csv", b"prompt,prompt\na,b\n"
    yield "reserved.tsv", b"prompt\tstatus\na\tb\n"


BAD_CSV_ROWS = {  # by the line on which they begin
    3: "has 2 cells, and the header has 3",
    4: "has 4 cells, and the header has 3",
    5: 'column "prompt" is not UTF-8: byte 0xe9',
    6: "',' expected after",
    9: "a quote opens in the row and is not closed",
}


def accepted_manifests() -> Iterator[tuple[str, bytes]]:
    yield (
        "bad-rows.csv",
        b"id,prompt,note\na,Hello.,1\nb,too few\nc,too,many,cells\nd,caf\xe9,1\n"
        b'e,"a quote" too early,1\nf,"of two\nlines",2\ng,"not closed,3\nh,swallowed,4\n',
    )
    yield "empty.jsonl", b""
    yield "blank.jsonl", b"\n \r\n\n"
    yield "empty.parquet", parquet([], pa.schema({"id": pa.string(), "prompt": pa.string()}))


def checkpoint_files() -> Iterator[tuple[str, bytes]]:
    """What makes a checkpoint one with pickles only, or one that wants its own code run."""
    config = {
        "model_type": "own_llava",
        "architectures": ["OwnLlava"],
        "auto_map": {"AutoModel": "modeling_own.OwnLlava", "AutoConfig": "modeling_own.OwnConfig"},
    }
    unknown = {"model_type": "vlm_of_tomorrow", "architectures": ["VlmOfTomorrow"]}
    yield "unknown-type/config.json", json.dumps(unknown, indent=2).encode() + b"\n"
    yield "pickles/pytorch_model.bin", PICKLE
    yield "remote-code/config.json", json.dumps(config, indent=2).encode() + b"\n"
    yield "remote-code/modeling_own.py", _code()


def _code() -> bytes:
    return f'from pathlib import Path\n\nPath("{CODE_RAN}").touch()\n'.encode()


def parquet(rows: list[dict[str, str]], schema: pa.Schema | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()


def _tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 2
            file.addfile(member, io.BytesIO(b"{}"))
    return buffer.getvalue()


def _lines(*rows: dict[str, str]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
