"""Manifests in a store, read as those of a folder are, and refused by name when they change."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from object_server import ObjectServer

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ConfigError, ErrorCode, ManifestError
from vlmbatch.images.buckets import AllowedBuckets
from vlmbatch.manifest import remote_file
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.remote import objects
from vlmbatch.remote.errors import RemoteFailedError

Put = Callable[[str, bytes], str]
PROMPTS = ["What?", "Why?", "é?"]


def jsonl(prompts: Sequence[str] = PROMPTS, **values: Any) -> bytes:
    return b"".join(json.dumps({"prompt": p, **values}).encode() + b"\n" for p in prompts)


def csv(prompts: Sequence[str] = PROMPTS) -> bytes:
    return "\n".join(["prompt", *prompts]).encode()


def parquet(prompts: Sequence[str] = PROMPTS, group_rows: int = 2) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": list(prompts)}), file, group_rows, compression="none")
    return file.getvalue()


def tar(prompts: Sequence[str] = PROMPTS) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, prompt in enumerate(prompts):
            member = tarfile.TarInfo(f"{number}.prompt")
            member.size = len(prompt.encode())
            archive.addfile(member, io.BytesIO(prompt.encode()))
    return file.getvalue()


KINDS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "jsonl": jsonl,
    "jsonl.gz": lambda prompts: gzip.compress(jsonl(prompts)),
    "csv.zst": lambda prompts: zstandard.compress(csv(prompts)),
    "parquet": parquet,
    "tar": tar,
}


def opened(source: str, **options: Any) -> Manifest:
    return open_manifest(ManifestConfig(source, **options), SamplingParams())


def prompts(source: str, **options: Any) -> list[str | None]:
    manifest = opened(source, **options)
    num_rows = manifest.scan().num_rows
    rows = list(manifest.rows())
    assert len(rows) == num_rows
    return [row.prompt for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind(put: Put, kind: str) -> None:
    assert prompts(put(f"rows.{kind}", KINDS[kind](PROMPTS))) == PROMPTS


def test_in_s3(put_s3: Put) -> None:
    for kind, content in KINDS.items():
        source = put_s3(f"rows {kind}/é.{kind}", content(PROMPTS))
    put_s3("rows tar/", b"")  # as consoles make folders
    folder = source.rpartition("/")[0]
    assert prompts(f"{folder}/*.tar") == prompts(f"{folder}/") == PROMPTS
    bucket = folder.rpartition("/")[0]
    source = f"{bucket}/rows parquet/é.parquet"
    manifest = opened(source)
    before = manifest.scan().sha256
    put_s3("rows parquet/é.parquet", parquet())  # as it was
    assert [row.prompt for row in manifest.rows()] == PROMPTS
    put_s3("rows parquet/é.parquet", parquet(PROMPTS[::-1]))
    assert opened(source).scan().sha256 != before
    with pytest.raises(ManifestError, match="changed while it was being read"):
        list(manifest.rows())


def test_folders_and_patterns(put: Put) -> None:
    a = put("rows/a.jsonl", jsonl(["a"]))
    put("rows/b.jsonl", jsonl(["b"]))
    put("rows/_c.jsonl", jsonl(["no"]))
    put("rows/sub/d.jsonl", jsonl(["no"]))
    put("rows/year=2026/e.jsonl", jsonl(["e"]))
    put("rows/readme.txt", b"no")
    folder = a.removesuffix("/a.jsonl")
    for source in (folder, f"{folder}/"):
        manifest = opened(source)
        assert manifest.scan().extra_schema.names == ["year"]
        assert [row.prompt for row in manifest.rows()] == ["a", "b", "e"]
    assert prompts(f"{folder}/{{b,a}}.jsonl") == ["b", "a"]
    assert prompts(f"{folder}/?.jsonl") == ["a", "b"]
    assert prompts(f"{folder}/**/*.jsonl") == ["no", "a", "b", "no", "e"]
    with pytest.raises(ManifestError, match=r"z\.jsonl: no such manifest, and the pattern"):
        opened(f"{folder}/{{a,z}}.jsonl")
    put("rows/x.csv", csv())
    with pytest.raises(ManifestError, match=r"both JSONL and CSV \(a.jsonl and x.csv\)"):
        opened(folder)
    with pytest.raises(ManifestError, match=r"y://.*x.csv is CSV, and .*y://.*a.jsonl JSONL"):
        opened(f"{folder}/[ax].*")


def test_images_lie_where_the_manifest_does(put: Put) -> None:
    images = ["x/a b#?.jpg", "./b.jpg", "/abs.jpg", "../c.jpg", "d.pdf#1", "s3://other/e.jpg"]
    source = put("rows/m.jsonl", b"".join(jsonl(["<image>"], image=image) for image in images))
    folder = source.removesuffix("/m.jsonl")
    manifest = opened(source)
    assert manifest.scan().image_base == f"{folder}/"
    first, second, absolute, *refused = manifest.rows()
    assert [row.images[0].url for row in (first, second)] == [
        f"{folder}/x/a b#?.jpg",
        f"{folder}/b.jpg",
    ]
    assert absolute.images[0].path == "/abs.jpg"
    assert [row.error.code for row in refused] == [
        ErrorCode.IMAGE_FORBIDDEN,
        ErrorCode.IMAGE_INVALID,
        ErrorCode.IMAGE_FORBIDDEN,
    ]
    assert "--allow-bucket s3://other would allow" in refused[2].error.message
    own = folder.removesuffix("/rows")
    config = ManifestConfig(source, image_base=f"{own}/elsewhere")
    buckets = AllowedBuckets.of(["s3://other"])
    rows = open_manifest(config, SamplingParams(), buckets=buckets).rows()
    urls = [row.images[0].url for row in rows if row.error is None]
    assert urls == [f"{own}/elsewhere/{images[0]}", f"{own}/elsewhere/b.jpg", None, images[5]]


def test_a_folder_of_images(put: Put) -> None:
    a = put("photos/b/a.jpg", b"a")
    put("photos/c:d.png", b"a")
    put("photos/notes.txt", b"a")
    folder = a.removesuffix("/b/a.jpg")
    manifest = opened(f"{folder}/", prompt="What?")
    assert manifest.scan().num_rows == 2
    found = [(row.id, row.images[0].url) for row in manifest.rows()]
    assert found == [("b/a.jpg", a), ("c:d.png", f"{folder}/c:d.png")]
    for pattern, number in (("*.png", 1), ("**/*.jpg", 1), ("b/a.jpg", 1), ("*", 1)):
        assert len(prompts(f"{folder}/{pattern}", prompt="What?")) == number
    with pytest.raises(ManifestError, match="--prompt"):
        opened(folder)
    with pytest.raises(ManifestError, match="--sidecar is for folders of this machine"):
        opened(folder, prompt="What?", sidecars=(".txt",))
    with pytest.raises(ManifestError, match="nothing there is an image by its name"):
        opened(f"{folder}/*.txt", prompt="What?")


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_changes_between_the_passes(put: Put, kind: str) -> None:
    content = KINDS[kind]
    source = put(f"rows.{kind}", content(PROMPTS))
    manifest = opened(source)
    manifest.scan()
    put(f"rows.{kind}", content([f"{prompt}!" for prompt in PROMPTS]))
    with pytest.raises(ManifestError, match="changed while it was being read") as caught:
        list(manifest.rows())
    assert str(caught.value).startswith(source)


def test_an_object_that_changes_while_it_is_read(
    put_s3: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 is told which object is meant, and refuses to give a range of another."""
    monkeypatch.setattr(objects, "_BLOCK_BYTES", 8000)
    many = [f"{number:0400}" for number in range(200)]
    source = put_s3("rows.parquet", parquet(many, 10))
    manifest = opened(source)
    manifest.scan()
    monkeypatch.setattr(remote_file, "_LOOK_SECONDS", 3600.0)
    rows = manifest.rows()
    assert next(rows).prompt == many[0]
    put_s3("rows.parquet", parquet(many[::-1], 10))
    with pytest.raises(ManifestError, match="changed while it was being read"):
        list(rows)


def test_parquet_is_read_in_ranges(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of columns that are not asked for, no byte is."""
    file = io.BytesIO()
    table = pa.table({"prompt": PROMPTS, "photo": [bytes([n]) * 2**20 for n in range(3)]})
    pq.write_table(table, file, compression="none", use_dictionary=False)
    manifest = opened(put("rows.parquet", file.getvalue()))
    read = []
    read_object = remote_file._RemoteReader.readinto

    def readinto(reader: Any, buffer: Any) -> int:
        read.append(read_object(reader, buffer))
        return read[-1]

    monkeypatch.setattr(remote_file._RemoteReader, "readinto", readinto)
    assert manifest.scan().num_rows == 3
    assert sum(read) < 2**20
    assert [row.prompt for row in manifest.rows()] == PROMPTS


class TestWhatCannotBeRead:
    def test_missing(self, put_s3: Put) -> None:
        for source, says in (
            ("s3://no-such-bucket-here/rows.jsonl", "bucket does not exist"),
            ("s3://no-such-bucket-here/*.jsonl", "bucket does not exist"),
            ("memory:///rows.jsonl", "nothing there"),
        ):
            with pytest.raises(ManifestError, match=says) as caught:
                opened(source)
            assert str(caught.value).startswith(source.replace("/*.jsonl", ": "))

    def test_unknown(self, put: Put) -> None:
        with pytest.raises(ManifestError, match="of no known kind"):
            opened(put("rows.txt", b"x"))
        with pytest.raises(ConfigError, match="no scheme nowhere://"):
            opened("nowhere://bucket/rows.jsonl")
        with pytest.raises(ManifestError, match="s3://: names no bucket"):
            opened("s3://")
        with pytest.raises(ManifestError, match="not a complete Parquet file"):
            opened(put("rows.parquet", b"PAR1 and no more")).scan()

    def test_forbidden(self, store: ObjectServer) -> None:
        with pytest.raises(ManifestError, match="access is denied"):
            opened("s3://bucket/forbidden/rows.jsonl")

    def test_a_store_that_fails_for_good(
        self, store: ObjectServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That is no fault of the manifest's: the run may go on later."""
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
        store.objects["bucket/busy/rows.parquet"] = parquet()
        manifest = opened("s3://bucket/busy/rows.parquet")
        manifest.scan()
        rows = manifest.rows()
        store.failures["bucket/busy/rows.parquet"] = 99
        with pytest.raises(RemoteFailedError, match=r"s3://bucket/busy/rows\.parquet: ") as caught:
            list(rows)
        assert caught.value.exit_status == 74
