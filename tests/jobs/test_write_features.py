"""``vlmbatch features``, and runs on what it writes, with the sample model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import call
from PIL import Image
from real_command import run
from s3_server import S3Server
from worker_processes import ENGINE, worker_pids

from vlmbatch.durable.staging_paths import staging_place
from vlmbatch.errors import EnginesLostError, ErrorCode, RowError
from vlmbatch.images.fetch import ImageFetcher
from vlmbatch.images.fetch_budget import Room
from vlmbatch.jobs.named_images import NamedImage
from vlmbatch.jobs.tower_writer import TowerWriter
from vlmbatch.models.llava.model import Model as LlavaModel
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.output.feature_folder import FeatureFolder, FeatureManifest
from vlmbatch.replicas.replica import Event, RowFailure
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.types import ImageGrid, PixelImage, Result

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "samples/tiny-llava"
NUM_ROWS = 160
MAX_TOKENS = 48


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of images, and ``features`` computed from it."""
    folder = tmp_path_factory.mktemp("samples")
    command = [sys.executable, str(ROOT / "samples/make_samples.py")]
    options = ["--rows", str(NUM_ROWS), "--seed", "7", "--out", str(folder)]
    subprocess.run(command + options, check=True, capture_output=True)
    assert features(folder / "manifest.jsonl", folder / "features") == 0
    return folder


def features(manifest: Path, output: Path | str, *options: object) -> int:
    # Decoding in this process saves the start of workers, which other tests are about.
    arguments = ("features", manifest, "-m", MODEL, "-o", output, "-q", "--image-workers", 0)
    return call([*arguments, *options])


def answers(manifest: Path | str, output: Path, *options: object) -> list[dict[str, Any]]:
    arguments = ("run", manifest, "-m", MODEL, "-o", output, "-q", "--max-tokens", MAX_TOKENS)
    assert call([*arguments, "--image-workers", 0, *options]) in (0, 1)
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    return lines_of(path.read_bytes())


def lines_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_tokens_from_features_are_those_from_pixels(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[LlavaModel] = []
    tokens: list[dict[int, tuple[int, ...]]] = []
    original = LlavaModel.__init__

    def noted(self: LlavaModel, *arguments: Any) -> None:
        original(self, *arguments)
        models.append(self)
        tokens.append({})

    def noted_result(answer: Answer, tokenizer: Tokenizer) -> Result:
        tokens[-1][answer.row.index] = answer.token_ids
        return to_result(answer, tokenizer)

    monkeypatch.setattr(LlavaModel, "__init__", noted)
    monkeypatch.setattr("vlmbatch.stages.sink.to_result", noted_result)
    from_pixels = answers(samples / "manifest.jsonl", tmp_path / "pixels.parquet")
    from_features = answers(
        samples / "features/manifest.jsonl",
        tmp_path / "features.parquet",
        *("--image-input-type", "image_features", "--disable-image-processor"),
    )
    assert from_features == from_pixels
    assert {row["status"] for row in from_pixels} == {"ok"}
    by_pixels, by_features = tokens
    assert by_features == by_pixels
    assert sorted(by_pixels) == list(range(NUM_ROWS)) and all(by_pixels.values())
    assert [model.vision_tower is None for model in models] == [False, True]


def test_the_manifest_is_the_same_but_for_the_images(samples: Path) -> None:
    before, after = lines(samples / "manifest.jsonl"), lines(samples / "features/manifest.jsonl")
    paths = [row.pop("image") for row in after]
    for row in before:
        del row["image"]
    assert after == before
    stored = {str(p.relative_to(samples / "features")) for p in samples.rglob("*.safetensors")}
    assert stored == set(paths)


def test_what_is_there_is_neither_decoded_nor_computed_again(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "features"
    shutil.copytree(samples / "features", folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    gone = sorted(kept)[3]
    gone.unlink()
    encoded: list[int] = []
    encode = TowerWriter._encode

    def noted(self: TowerWriter) -> None:
        encoded.append(len(self._batch))
        encode(self)

    monkeypatch.setattr(TowerWriter, "_encode", noted)
    assert features(samples / "manifest.jsonl", folder) == 0
    assert encoded == [1]
    del kept[gone]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    original = samples / "features" / gone.relative_to(folder)
    assert gone.read_bytes() == original.read_bytes()


def test_rows_that_cannot_be_done_keep_their_place_and_their_image(
    samples: Path, tmp_path: Path
) -> None:
    image = next(iter(samples.glob("images/*")))
    prompt = "USER: <image>\nWhat number is written? ASSISTANT:"
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "image": str(image), "note": {"a": 1}},
        {"prompt": prompt, "image": "none.png"},
        {"prompt": prompt, "image": [str(image), "none.png"]},
        {"prompt": 7, "image": str(image)},
        {"id": 4, "prompt": prompt, "image": None},
        {"prompt": prompt, "image": "data:image/png;base64,AAAA"},
    ]
    text = "\n".join(map(json.dumps, rows[:4])) + "\nnot json\n"
    text += "\n".join(map(json.dumps, rows[4:]))
    (tmp_path / "m.jsonl").write_text(text)
    out = tmp_path / "out"
    assert features(tmp_path / "m.jsonl", out, "--errors", tmp_path / "errors.jsonl") == 1
    assert [(e["row_index"], e["error_code"]) for e in lines(tmp_path / "errors.jsonl")] == [
        (1, "image_missing"),
        (2, "image_missing"),
        (3, "prompt_invalid"),
        (4, "manifest_line_invalid"),
        (6, "image_unreadable"),
    ]
    written = lines(out / "manifest.jsonl")
    path = written[0]["image"]
    assert (out / path).is_file()
    missing = str(tmp_path / "none.png")
    assert [row.get("image") for row in written] == [
        path,
        missing,
        [path, missing],
        str(image),
        None,
        None,
        rows[5]["image"],
    ]
    assert written[0]["note"] == {"a": 1}
    assert written[4] == {"id": None}
    table = answers(
        out / "manifest.jsonl", tmp_path / "a.parquet", "--image-input-type", "image_features"
    )
    assert [row["id"] for row in table] == ["0", "1", "2", "3", "#4", "4", "6"]
    assert [row["error_code"] for row in table] == [
        None,
        "image_missing",
        "image_token_mismatch",
        "prompt_invalid",
        "prompt_invalid",
        "image_token_mismatch",
        "features_invalid",
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_images_without_prompts(
    samples: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], *, packed: bool
) -> None:
    """A folder, or a tar whose one sample has a prompt; the runs ask."""
    images = sorted(samples.glob("images/*"))[:2]
    source = tmp_path / ("photos.tar" if packed else "photos")
    if packed:
        with tarfile.open(source, "w") as tar:
            for image in images:
                tar.add(image, image.name)
            (tmp_path / "x.prompt").write_text("Why?")
            tar.add(tmp_path / "x.prompt", images[1].with_suffix(".prompt").name)
    else:
        source.mkdir()
        for image in images:
            shutil.copy(image, source)
    out = tmp_path / "out"
    command = ("features", source, "-m", MODEL, "-o", out, "--image-workers", 0)
    assert call(command) == 0
    step = capfd.readouterr().err.rpartition("next: vlmbatch ")[2]
    assert "--prompt 'Describe the picture.'" in step
    before = {row["image"]: row for row in lines(samples / "features/manifest.jsonl")}
    assert all(row["image"] in before for row in lines(out / "manifest.jsonl"))
    table = answers(
        *(out / "manifest.jsonl", tmp_path / "a.parquet", "--image-input-type", "image_features"),
        *("--prompt", "What?"),
    )
    assert [row["status"] for row in table] == ["ok", "ok"]


def test_images_of_allowed_hosts_are_fetched(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = next(iter(samples.glob("images/*")))

    def fetch(fetcher: ImageFetcher, url: str, room: Room) -> bytes:
        if url.endswith("/gone.jpg"):
            raise RowError(ErrorCode.IMAGE_FETCH_FAILED, f"{url}: gone")
        return image.read_bytes()

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    prompt = "USER: <image>\nWhat number is written? ASSISTANT:"
    base = "https://images.example.org"
    images = [str(image), f"{base}/a.jpg", f"{base}/gone.jpg", "https://b.example/a.jpg"]
    rows = [{"prompt": prompt, "image": image} for image in images]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--allow-domain", "images.example.org", "--errors", tmp_path / "errors.jsonl")
    assert features(tmp_path / "m.jsonl", tmp_path / "out", *options) == 1
    assert [(e["row_index"], e["error_code"]) for e in lines(tmp_path / "errors.jsonl")] == [
        (2, "image_fetch_failed"),
        (3, "image_forbidden"),
    ]
    written = [row["image"] for row in lines(tmp_path / "out" / "manifest.jsonl")]
    assert written == [written[0], written[0], *images[2:]]
    assert (tmp_path / "out" / written[0]).is_file()


def test_embedded_images_of_a_parquet_manifest(samples: Path, tmp_path: Path) -> None:
    first = lines(samples / "manifest.jsonl")[0]
    data = (samples / first["image"]).read_bytes()
    embedded = [{"bytes": data, "path": "a.png"}, {"bytes": b"no image", "path": None}]
    pq.write_table(
        pa.table({"prompt": [first["prompt"]] * 2, "image": embedded}), tmp_path / "m.parquet"
    )
    assert features(tmp_path / "m.parquet", tmp_path / "out") == 1
    written = [row["image"] for row in lines(tmp_path / "out/manifest.jsonl")]
    assert written == [
        lines(samples / "features/manifest.jsonl")[0]["image"],
        {"bytes": None, "path": None},
    ]


def test_a_killed_command_is_finished_by_the_same_command(samples: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    command = ["features", samples / "manifest.jsonl", "-m", MODEL, "-o", folder]
    killed = run(*command, "-q", "--image-workers", 0, crash_at="output.synced:24")
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "manifest.jsonl").exists()
    left = len(list(folder.rglob("*.safetensors")))
    assert 20 <= left < 24  # four threads write
    assert features(samples / "manifest.jsonl", folder) == 0
    assert not list(folder.rglob("*.tmp"))
    assert contents(folder) == contents(samples / "features")


def test_several_towers_of_which_one_is_killed_write_the_same_bytes(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    take = TowerWriter._take

    def kill_one(self: TowerWriter, events: list[Event]) -> None:
        if events and not killed:  # some batches are done, and others under way
            killed.append(min(worker_pids(os.getpid(), ENGINE)))
            os.kill(killed[0], signal.SIGKILL)
        take(self, events)

    monkeypatch.setattr(TowerWriter, "_take", kill_one)
    folder, summary = tmp_path / "features", tmp_path / "summary.json"
    options = ("--replicas", 2, "--summary-json", summary)
    assert features(samples / "manifest.jsonl", folder, *options) == 0
    assert killed
    assert contents(folder) == contents(samples / "features")
    figures = json.loads(summary.read_text())
    shares = [share["images"] for share in figures["engines"].values()]
    assert len(shares) == 2 and 0 < sum(shares) <= figures["images_computed"]


@pytest.fixture
def store() -> Iterator[Callable[[], dict[str, bytes]]]:
    """What is in fsspec's store in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield lambda: {path: filesystem.cat_file(path) for path in filesystem.find("/")}
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


URL = "memory://bucket/features/"


def test_features_at_a_url(
    samples: Path,
    tmp_path: Path,
    store: Callable[[], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Put when all are computed; a put that fails is gone on with, and no image is seen again."""
    manifest, here = samples / "manifest.jsonl", tmp_path / "here"
    filesystem, options = fsspec.filesystem("memory"), ("--limit", 8, "--work-dir")
    move = filesystem.mv

    def forbid(source: str, target: str) -> None:
        if target.endswith(".safetensors") and len(store()) > 2:
            raise PermissionError(errno.EACCES, "Forbidden", target)
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(filesystem), "mv", lambda _, *paths: forbid(*paths))
        assert features(manifest, URL, *options, here) == 74
    message = capfd.readouterr().err
    assert "access is denied" in message and "run the same command again to put it" in message
    assert not any(path.endswith("manifest.jsonl") for path in store())
    with monkeypatch.context() as patch:
        patch.setattr(TowerWriter, "_encode", lambda _: 1 / 0)
        assert features(manifest, URL, *options, here) == 0
        assert not list(here.rglob("*.safetensors"))
        assert features(manifest, URL, *options, tmp_path / "another machine") == 0
    put = {path.removeprefix("/bucket/features/"): data for path, data in store().items()}
    assert put.pop("_vlmbatch/features.json")
    assert features(manifest, tmp_path / "local", "--limit", 8) == 0
    assert put == contents(tmp_path / "local")

    read = ("--image-input-type", "image_features")
    table = answers(f"{URL}manifest.jsonl", tmp_path / "a.parquet", *read)
    assert table == answers(tmp_path / "local/manifest.jsonl", tmp_path / "b.parquet", *read)


def test_a_put_that_is_killed_is_finished_by_the_same_command(
    samples: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.client.create_bucket(Bucket="killed-features")
    where = ("-o", "s3://killed-features/f/", "--work-dir", tmp_path)
    command = ["features", samples / "manifest.jsonl", "-m", MODEL, *where, "--limit", 8, "-q"]
    command += ["--image-workers", 0]
    killed = run(*command, crash_at="remote.object_put:1", variables=s3.variables)
    assert killed.returncode == -signal.SIGKILL
    assert s3.keys("killed-features").keys() & {"f/_vlmbatch/features.json"}
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(TowerWriter, "_encode", lambda _: 1 / 0)
    assert call(command) == 0
    rows = lines_of(s3.read("killed-features", "f/manifest.jsonl"))
    assert {f"f/{row['image']}" for row in rows} < s3.keys("killed-features").keys()


def test_urls_that_hold_something_else(
    samples: Path,
    tmp_path: Path,
    store: Callable[[], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/bucket/photos/manifest.jsonl", b"precious")
    work = ("--limit", 1, "--work-dir", tmp_path)
    assert features(samples / "manifest.jsonl", "memory://bucket/photos", *work) == 2
    assert "holds other objects than `vlmbatch features` puts" in capfd.readouterr().err
    commit = FeatureManifest.commit

    def put_another(manifest: FeatureManifest) -> None:
        commit(manifest)
        filesystem.pipe_file("/bucket/features/manifest.jsonl", b"another")

    command = (samples / "manifest.jsonl", URL, *work)
    folder, name = staging_place(URL, tmp_path)
    folder.mkdir()
    with FeatureFolder(folder / name):
        assert features(*command) == 75
    assert f"{URL} is being written by another run" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(FeatureManifest, "commit", put_another)
        assert features(*command) == 2
    assert "another manifest.jsonl was put since this command began" in capfd.readouterr().err
    assert store()["/bucket/features/manifest.jsonl"] == b"another"
    assert features(*command) == 0
    assert lines_of(store()["/bucket/features/manifest.jsonl"])[0]["image"]


def test_a_batch_that_ends_two_engines_ends_the_command(tmp_path: Path) -> None:
    error = RowError(ErrorCode.ENGINE_ERROR, "2 engines ended while they computed this row")
    replica: Any = SimpleNamespace(
        wants_requests=False, submit=lambda request: None, poll=lambda: [RowFailure(0, error)]
    )
    image = PixelImage(np.zeros((2, 2, 3), np.uint8), b"", ImageGrid(1, 1, 4, 12))
    with FeatureFolder(tmp_path / "f") as folder:
        tower = TowerWriter(lambda: nullcontext(replica), folder, batch_tokens=4)
        with pytest.raises(
            EnginesLostError, match=r"2 engines ended .* run the same command again"
        ):
            tower.add([NamedImage("ab", image)])


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder of features, but for its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("where", [".", "manifest.jsonl", "none/features"])
def test_places_that_hold_something_else_are_refused(
    samples: Path, tmp_path: Path, where: str
) -> None:
    shutil.copy(samples / "manifest.jsonl", tmp_path)
    before = sorted(tmp_path.iterdir())
    assert features(tmp_path / "manifest.jsonl", tmp_path / where) == 2
    (tmp_path / "other.jsonl").write_text('{"prompt": "a"}')
    assert features(tmp_path / "other.jsonl", tmp_path) == 2
    (tmp_path / "other.jsonl").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_another_type_of_numbers_goes_to_files_of_its_own(samples: Path, tmp_path: Path) -> None:
    manifest = samples / "manifest.jsonl"
    assert features(manifest, tmp_path / "f", "--limit", 3, "--dtype", "bfloat16") == 0
    assert features(manifest, tmp_path / "f", "--limit", 3) == 0
    sizes = sorted(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert len(sizes) % 2 == 0 and sizes[-1] > 1.9 * sizes[0]
    assert features(manifest, tmp_path / "f", "--limit", 3, "--dtype", "bfloat16") == 0
    options = ("--image-input-type", "image_features")
    table = answers(tmp_path / "f/manifest.jsonl", tmp_path / "a.parquet", *options)
    assert [row["text"] for row in table] == [row["answer"] for row in lines(manifest)[:3]]


def test_another_decoder_of_images_goes_to_files_of_its_own(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((700, 700)).save(tmp_path / "a.jpg")
    row = {"prompt": "USER: <image>\nWhat? ASSISTANT:", "image": "a.jpg"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))

    def stored(*options: object) -> set[str]:
        assert features(tmp_path / "m.jsonl", tmp_path / "f", *options) == 0
        return {path.name for path in tmp_path.rglob("*.safetensors")}

    exact = stored()
    assert stored("--image-decoder", "exact") == exact and len(exact) == 1
    assert len(stored("--image-decoder", "scaled")) == 2
