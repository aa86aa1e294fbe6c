"""Whole commands on manifests and images in S3."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fast_command import FastCommands
from in_process import call
from object_server import ObjectServer, access
from PIL import Image
from resumable_runs import ResumableRun, read_rows

from vlmbatch.manifest.manifest import Manifest
from vlmbatch.types import Row

Put = Callable[[str, bytes], str]
NUM_ROWS = 60
PROMPT = "USER: <image>\nWhat number is written? ASSISTANT:"


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_killed_run_is_finished_by_the_next(
    commands: FastCommands, tmp_path: Path, model: Path, put_s3: Put
) -> None:
    """Every row is there once and none is computed twice; of another manifest, none is."""
    for number in range(5):
        put_s3(f"images/{number}.png", picture(number) if number != 3 else b"no picture")
    rows = [
        {"id": f"{n}", "prompt": f"<image>What is {n}?", "image": f"images/{n % 6}.png"}
        for n in range(NUM_ROWS)
    ]
    manifest = put_s3("rows.jsonl", lines(rows))
    run = ResumableRun(commands, tmp_path, Path(), model, group_rows=8, step_seconds=0.005)
    run.arguments[1] = manifest
    assert run.attempt(kill_at=20, kept=1) == -signal.SIGKILL
    put_s3("rows.jsonl", lines(rows[::-1]))
    refused = run.start()
    assert refused.wait() == 2
    assert "manifest" in refused.stderr and "--overwrite" in refused.stderr
    put_s3("rows.jsonl", lines(rows))
    assert run.attempt() == 1
    found = read_rows(run.output)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    codes = [row["error_code"] for row in found]
    assert codes.count("image_unreadable") == codes.count("image_missing") == NUM_ROWS // 6
    assert len({row["text"] for row in found}) > NUM_ROWS // 4
    assert run.killed[0] > 0


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (["validate"], signal.SIGINT, 130),
        (["validate", "--decode-images", "--image-workers", 0], signal.SIGTERM, 143),
        (["plan"], signal.SIGTERM, 143),
    ],
)
def test_a_store_that_stalls_holds_up_no_signal(
    commands: FastCommands,
    store: ObjectServer,
    model: Path,
    tmp_path: Path,
    command: list[object],
    number: signal.Signals,
    status: int,
) -> None:
    """Though what was asked for never comes; without, they end after a minute."""
    manifest = tmp_path / "rows.jsonl"
    manifest.write_bytes(lines([{"prompt": PROMPT, "image": "s3://photos/stalls/a.png"}]))
    name, *options = command
    asked = [name, manifest, "-m", model, "--allow-bucket", "s3://photos", *options]
    started = commands.start(*asked, variables=access(store.url))
    started.wait_until(lambda: bool(store.requests))
    started.send_signal(number)
    assert started.wait(15) == status
    assert "0 rows were" in started.stderr


class TestBadInputs:
    """On a store that refuses, in this process."""

    @pytest.fixture
    def run(self, store: ObjectServer, samples: Path, tmp_path: Path) -> Iterator[Any]:
        image = next(samples.glob("images/*.png")).read_bytes()
        store.objects = {f"bucket/{name}.png": image for name in "abcdef"}

        def run(images: list[str], *options: object) -> tuple[int, list[dict[str, Any]]]:
            rows = [{"prompt": PROMPT, "image": image} for image in images]
            store.objects["bucket/rows.jsonl"] = lines(rows)
            output = tmp_path / "out.parquet"
            arguments = ["run", "s3://bucket/rows.jsonl", "-m", samples / "tiny-llava", "-q"]
            status = call([*arguments, "-o", output, "--image-workers", 0, *options])
            return status, pq.read_table(output).to_pylist() if output.exists() else []

        yield run

    def test_one_image_is_forbidden(self, run: Any, store: ObjectServer) -> None:
        """And one is elsewhere: redirects are followed, as S3 wants it for new buckets."""
        store.moved = {"bucket/moved.png": "elsewhere/a.png"}
        store.objects["elsewhere/a.png"] = store.objects["bucket/a.png"]
        images = ["a.png", "forbidden/b.png", "gone.png", "s3://other/a.png", "moved.png"]
        status, rows = run(images)
        assert status == 1
        assert [row["error_code"] for row in rows] == [
            *(None, "image_fetch_failed", "image_missing", "image_forbidden", None)
        ]
        assert rows[4]["text"] == rows[0]["text"]
        assert "s3://bucket/forbidden/b.png: access is denied" in rows[1]["error_message"]

    def test_an_image_is_fetched_once_for_all_its_questions(
        self, run: Any, store: ObjectServer, samples: Path, tmp_path: Path
    ) -> None:
        """Wherever these stand; what cannot be fetched is an error of each."""
        images = ["a.png", "b.png", "forbidden/c.png"]
        status, rows = run(images * 4)
        assert status == 1
        assert [row["error_code"] for row in rows] == [None, None, "image_fetch_failed"] * 4
        assert [store.requests.count(f"GET bucket/{name}") for name in images[:2]] == [1, 1]
        store.requests.clear()
        command = ["features", "s3://bucket/rows.jsonl", "-m", samples / "tiny-llava", "-q"]
        assert call([*command, "-o", tmp_path / "features", "--image-workers", 0]) == 1
        assert [store.requests.count(f"GET bucket/{name}") for name in images[:2]] == [1, 1]

    def test_validate_and_plan_read_headers(
        self, run: Any, store: ObjectServer, samples: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The same codes as of the run, and the same numbers of tokens."""
        images = ["a.png", "a.png", "b.png", "forbidden/b.png", "gone.png", "s3://other/a.png"]
        _, rows = run(images)
        store.requests.clear()
        command = ["s3://bucket/rows.jsonl", "-m", samples / "tiny-llava", "-q"]
        assert call(["validate", *command, "--errors", "-"]) == 1
        found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [row["error_code"] for row in found] == [row["error_code"] for row in rows[3:]]
        assert [store.requests.count(f"GET bucket/{name}.png") for name in "ab"] == [1, 1]
        assert call(["plan", *command, "--json"]) == 1
        plan = json.loads(capfd.readouterr().out)
        assert (plan["unknown"], plan["distinct_images"]) == (0, 2)
        assert plan["prompt_tokens"] == sum(row["prompt_tokens"] or 0 for row in rows)

    def test_all_images_are_forbidden(self, run: Any, capfd: pytest.CaptureFixture[str]) -> None:
        status, rows = run([f"forbidden/{number}.png" for number in range(8)])
        assert (status, len(rows)) == (1, 8)
        assert {row["error_code"] for row in rows} == {"image_fetch_failed"}
        images = [f"forbidden/{number}.png" for number in range(250)]
        status, rows = run(images, "--max-error-rate", "5%", "--overwrite")
        assert status == 1
        assert "of 250 rows are done" in capfd.readouterr().err

    def test_the_manifest_is_another_after_validate(
        self, run: Any, store: ObjectServer, samples: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """``validate`` promises nothing of what is there later: the run reads what it finds."""
        store.objects["bucket/rows.jsonl"] = lines([{"prompt": PROMPT, "image": "a.png"}])
        command = ["validate", "s3://bucket/rows.jsonl", "-m", samples / "tiny-llava", "-q"]
        assert call(command) == 0
        assert run(["gone.png", "a.png"])[0] == 1
        status, rows = run(["b.png"])
        assert (status, len(rows)) == (2, 2)  # the earlier output stays
        assert "manifest" in capfd.readouterr().err

    def test_a_store_that_fails_for_a_while(
        self,
        run: Any,
        store: ObjectServer,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """The run ends, and the same command goes on."""
        all_rows = Manifest.rows

        def rows(manifest: Manifest) -> Iterator[Row]:
            store.failures["bucket/rows.jsonl"] = 99
            return all_rows(manifest)

        monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
        monkeypatch.setattr(Manifest, "rows", rows)
        assert run(["a.png", "b.png"]) == (74, [])
        assert "s3://bucket/rows.jsonl: " in capfd.readouterr().err
        monkeypatch.setattr(Manifest, "rows", all_rows)
        store.failures.clear()
        status, found = run(["a.png", "b.png"])
        assert (status, len(found)) == (0, 2)

    @pytest.mark.parametrize(
        ("source", "status", "says"),
        [
            ("s3://bucket/forbidden/rows.jsonl", 2, "access is denied"),
            ("s3://bucket/none.jsonl", 2, "there is nothing there"),
            ("nope://bucket/rows.jsonl", 2, "no scheme nope:// is known"),
            ("webdav://bucket/rows.jsonl", 2, "Install webdav4"),
        ],
    )
    def test_no_manifest(
        self,
        store: ObjectServer,
        samples: Path,
        source: str,
        status: int,
        says: str,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        assert call(["validate", source, "-m", samples / "tiny-llava"]) == status
        assert says in capfd.readouterr().err
