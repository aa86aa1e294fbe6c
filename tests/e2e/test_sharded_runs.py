"""``run --shard``, ``merge`` and ``status`` as the tasks of a cluster call them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import real_command
from fast_command import FastCommands

from vlmbatch.jobs.parts_status import read_parts_status

SAMPLES = Path(__file__).parents[2] / "samples"
COUNT = 3
RUN_ID = b"vlmbatch.run_id"
NAMES = ("ID", "COUNT", "MIN", "MAX")
Task = Callable[..., Any]  # its end: returncode, stdout and stderr


def arguments_of(manifest: Path, output: str, *options: object) -> list[object]:
    model = ("-m", SAMPLES / "tiny-llava", "--max-tokens", 8, "--image-workers", 0)
    return ["run", manifest.name, *model, "-o", output, *options]


@pytest.fixture(scope="module")
def vlmbatch(commands: FastCommands) -> Task:
    """``vlmbatch ARGUMENTS`` in a folder, where a fake engine answers."""

    def vlmbatch(*arguments: object, folder: Path, **variables: str) -> Any:
        done = commands.start(*arguments, folder=folder, variables=variables)
        status = done.wait()
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr
        return subprocess.CompletedProcess([*map(str, arguments)], status, done.stdout, done.stderr)

    return vlmbatch


@pytest.fixture(scope="module")
def run(vlmbatch: Task) -> Task:
    """``vlmbatch run`` in the manifest's folder."""

    def run(manifest: Path, output: str, *options: object, **variables: str) -> Any:
        arguments = arguments_of(manifest, output, *options)
        return vlmbatch(*arguments, folder=manifest.parent, **variables)

    return run


@pytest.fixture(scope="module")
def merge(vlmbatch: Task) -> Task:
    return lambda manifest, *options: vlmbatch("merge", "parts", *options, folder=manifest.parent)


def contents(path: Path) -> tuple[pa.Table, dict[bytes, bytes]]:
    """Table and metadata of an output, without the run's id."""
    table = pq.read_table(path)
    return table, {key: v for key, v in table.schema.metadata.items() if key != RUN_ID}


def assert_same(one: Path, other: Path) -> None:
    (table, metadata), (other_table, other_metadata) = contents(one), contents(other)
    assert table.schema.equals(other_table.schema) and metadata == other_metadata
    assert table.equals(other_table)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest answered by one run, and by the tasks of three parts, with the real engine."""

    def run(manifest: Path, output: str, *options: object) -> Any:
        return real_command.run(*arguments_of(manifest, output, *options), folder=manifest.parent)

    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(SAMPLES / "images", folder / "images")
    lines = (SAMPLES / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows):
        row["n"] = {"number": number}
        if number % 5 == 0:
            del row["id"]
        if number % 3 == 0:
            row["temperature"] = 0.9  # the seed comes of the row's number
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(manifest, "one.parquet", "--keep-inputs").returncode == 1
    for number in (2, 0, 1):
        done = run(manifest, "parts", "--shard", f"{number}/{COUNT}", "--keep-inputs")
        assert done.returncode in (0, 1), done.stderr
    return manifest


@pytest.fixture
def parts(answered: Path, tmp_path: Path) -> Path:
    """A copy of manifest and parts, to be changed."""
    for folder in ("parts", "images"):
        shutil.copytree(answered.parent / folder, tmp_path / folder)
    return Path(shutil.copy(answered, tmp_path))


def test_merged_parts_are_one_run(answered: Path, merge: Task) -> None:
    done = merge(answered, "-o", "merged.parquet", "--summary-json", "summary.json")
    assert done.returncode == 1 and done.stdout == ""
    assert_same(answered.parent / "one.parquet", answered.parent / "merged.parquet")
    figures = json.loads((answered.parent / "summary.json").read_text())
    assert (figures["rows"], figures["errors"], figures["exit_status"]) == (30, 2, 1)
    again = merge(answered, "-o", "merged.parquet", "--exit-zero")
    assert again.returncode == 0 and "nothing to do: the parts are joined already" in again.stderr


def test_a_merged_file_is_gone_on_with_as_a_run(answered: Path, run: Task, merge: Task) -> None:
    merge(answered, "-o", "merged.parquet")
    done = run(answered, "merged.parquet", "--keep-inputs")
    assert "nothing to do" in done.stderr
    grown = answered.with_name("grown.jsonl")
    grown.write_text(answered.read_text() + '{"id": "new", "prompt": "USER: Hi ASSISTANT:"}\n')
    shutil.copy(answered.with_name("merged.parquet"), answered.with_name("grown.parquet"))
    shutil.copytree(
        answered.with_name("merged.parquet.vlmbatch"), answered.with_name("grown.parquet.vlmbatch")
    )
    summary = ("--summary-json", "summary.json")
    done = run(grown, "grown.parquet", "--keep-inputs", "--incremental", *summary)
    figures = json.loads(answered.with_name("summary.json").read_text())
    # Sampled rows have seeds of their row's number, which is the same here; errors are tried again.
    assert (figures["rows"], figures["resumed"]) == (31, 28)


def test_a_part_that_is_there_is_not_computed_again(answered: Path, run: Task) -> None:
    files = {path: path.read_bytes() for path in (answered.parent / "parts").glob("*.parquet")}
    for number in range(COUNT):
        done = run(answered, "parts/", "--shard", f"{number}/{COUNT}", "--keep-inputs")
        assert "nothing to do: the output is complete" in done.stderr
    assert files == {path: path.read_bytes() for path in files}
    # Also as other machines see it, which have the folder without what begins with _.
    shutil.copytree(answered.parent / "parts", answered.parent / "copied")
    shutil.rmtree(answered.parent / "copied/_vlmbatch")
    done = run(answered, "copied", "--shard", f"1/{COUNT}", "--keep-inputs")
    assert "nothing to do: the output is complete" in done.stderr


def test_readers_of_the_folder_see_the_parts_alone(answered: Path) -> None:
    assert pq.read_table(answered.parent / "parts").num_rows == 30
    names = {path.name for path in (answered.parent / "parts").iterdir()}
    assert names == {"_vlmbatch", *(f"part-0000{number}-of-00003.parquet" for number in range(3))}


def test_status_counts_parts_and_rows(parts: Path, vlmbatch: Task) -> None:
    def status(*options: str) -> Any:
        return vlmbatch("status", "parts", *options, folder=parts.parent)

    done = status()
    assert done.returncode == 1 and "parts     3: 3 done" in done.stdout
    assert "rows      30 of 30 done, 0 left: 28 ok, 2 errors" in done.stdout
    assert "row 9 (id truncated-image)" in done.stdout and "row 19" in done.stdout
    assert "vlmbatch merge parts -o FILE" in done.stdout
    (parts.parent / "parts/part-00001-of-00003.parquet").unlink()
    done = status()
    assert done.returncode == 1
    assert "parts     3: 2 done, 1 missing" in done.stdout
    assert "next: run the task of part 1 again" in done.stdout
    figures = json.loads(status("--json").stdout)
    assert (figures["parts_done"], figures["parts_missing"]) == ([0, 2], [1])
    assert (figures["rows_total"], figures["rows_done"]) == (30, 20)


def test_missing_parts_are_named(parts: Path, merge: Task) -> None:
    for number in (0, 2):
        (parts.parent / f"parts/part-0000{number}-of-00003.parquet").unlink()
    done = merge(parts, "-o", "merged.parquet")
    assert done.returncode == 1
    assert "2 of 3 parts missing or not finished: 0, 2." in done.stderr
    assert not (parts.parent / "merged.parquet").exists()


def test_parts_of_two_runs_are_told_apart(parts: Path, run: Task, merge: Task) -> None:
    options = ("--shard", "1/3", "--max-tokens", 3)
    done = run(parts, "parts", *options)
    assert done.returncode == 2 and "belongs to a run with other settings:" in done.stderr
    for change in ("sampling.max_tokens: 8 -> 3", "relative image paths start from another folder"):
        assert change in done.stderr
    assert run(parts, "parts", *options, "--overwrite").returncode in (0, 1)
    done = merge(parts, "-o", "merged.parquet")
    assert done.returncode == 2 and "is of another run than part-00000-of-00003" in done.stderr
    assert "sampling.max_tokens: 8 -> 3" in done.stderr
    assert not (parts.parent / "merged.parquet").exists()
    for number in (0, 2):
        options = ("--shard", f"{number}/3", "--max-tokens", 3)
        assert run(parts, "parts", *options, "--overwrite").returncode in (0, 1)
    assert merge(parts, "-o", "merged.parquet").returncode == 1


def test_parts_of_two_manifests_are_brought_to_one(parts: Path, run: Task, merge: Task) -> None:
    with parts.open("a") as file:
        file.write('{"id": "new", "prompt": "USER: Hi ASSISTANT:"}\n')
    tasks = [("--shard", f"{number}/3", "--keep-inputs", "--incremental") for number in range(3)]
    assert run(parts, "parts", *tasks[0]).returncode in (0, 1)
    found = read_parts_status(parts.with_name("parts"))
    assert found is not None and not found.is_complete
    assert found.next_step.startswith("run all tasks again, with --incremental if the manifest")
    done = merge(parts, "-o", "merged.parquet")
    assert done.returncode == 2
    assert "Run all tasks again with --incremental, then merge again" in done.stderr
    for task in tasks:
        assert run(parts, "parts", *task).returncode in (0, 1)
    found = read_parts_status(parts.with_name("parts"))
    assert found is not None and found.is_complete and found.rows_left == 0
    assert merge(parts, "-o", "merged.parquet").returncode == 1


def test_a_file_in_the_place_of_the_merged_one(answered: Path, merge: Task) -> None:
    (answered.parent / "other.parquet").write_bytes(b"other")
    done = merge(answered, "-o", "other.parquet")
    assert done.returncode == 2 and "add --overwrite to replace it" in done.stderr
    done = merge(answered, "-o", "one.parquet")
    assert done.returncode == 2 and "or is of another run" in done.stderr
    assert merge(answered, "-o", "other.parquet", "--overwrite").returncode == 1
    assert_same(answered.parent / "one.parquet", answered.parent / "other.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "parts", "--shard", "0/4"), "parts is of a run in 3 parts"),
        (("-o", "parts"), "parts is of a run with --shard, in 3 parts"),
        (("-o", "parts", "--overwrite"), "parts is of a run with --shard, in 3 parts"),
        (("-o", "plain", "--shard", "0/3"), "plain is of a run without --shard"),
    ],
)
def test_folders_of_other_runs(
    answered: Path, options: tuple[str, ...], message: str, run: Task
) -> None:
    if not (answered.parent / "plain").exists():
        (answered.parent / "none.jsonl").write_text("")
        assert run(answered.parent / "none.jsonl", "plain/").returncode == 0
    done = run(answered, *options[1:])
    assert done.returncode == 2 and message in done.stderr


def test_more_parts_than_rows(tmp_path: Path, run: Task, merge: Task) -> None:
    """Parts without rows are whole files as well, with all columns."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "USER: Hi ASSISTANT:", "n": 1}\n' * 2)
    assert run(manifest, "one.parquet").returncode == 0
    for number in range(4):
        assert run(manifest, "parts", "--shard", f"{number}/4").returncode == 0
    paths = sorted((tmp_path / "parts").glob("*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in paths] == [0, 1, 0, 1]
    assert len({pq.read_schema(path).remove_metadata() for path in paths}) == 1
    assert merge(manifest, "-o", "merged.parquet").returncode == 0
    assert_same(tmp_path / "one.parquet", tmp_path / "merged.parquet")


def test_an_empty_manifest(tmp_path: Path, run: Task, merge: Task) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("")
    assert run(manifest, "one.parquet").returncode == 0
    for number in range(2):
        assert run(manifest, "parts", "--shard", f"{number}/2").returncode == 0
    assert merge(manifest, "-o", "merged.parquet").returncode == 0
    assert_same(tmp_path / "one.parquet", tmp_path / "merged.parquet")


def test_failed_rows_of_a_part_are_answered_again(tmp_path: Path, run: Task, merge: Task) -> None:
    """And what is new in a manifest that has grown."""
    images = tmp_path / "images"
    images.mkdir()
    rows = [{"prompt": "USER: <image> ASSISTANT:", "image": f"images/{n}.jpg"} for n in range(6)]
    picture = next((SAMPLES / "images").glob("*-scene.jpg"), None) or next(
        path for path in sorted((SAMPLES / "images").glob("*.jpg")) if path.name != "truncated.jpg"
    )
    for number in (0, 1, 2, 4, 5):
        shutil.copy(picture, images / f"{number}.jpg")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    statuses = [run(manifest, "parts", "--shard", f"{n}/2").returncode for n in range(2)]
    assert statuses == [0, 1]
    shutil.copy(picture, images / "3.jpg")
    summary = ("--summary-json", "summary.json")
    done = run(manifest, "parts", "--shard", "1/2", "--retry-failed", *summary)
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert (done.returncode, figures["rows"], figures["resumed"]) == (0, 3, 2)
    rows.append({"prompt": "USER: Hi ASSISTANT:"})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    resumed = []
    for number in range(2):
        shard = ("--shard", f"{number}/2")
        assert run(manifest, "parts", *shard, "--incremental", *summary).returncode == 0
        resumed.append(json.loads((tmp_path / "summary.json").read_text())["resumed"])
    assert resumed == [3, 2]  # row 3 has another image than when it was first looked at
    assert merge(manifest, "-o", "merged.parquet").returncode == 0
    assert run(manifest, "one.parquet").returncode == 0
    assert_same(tmp_path / "one.parquet", tmp_path / "merged.parquet")


def test_rows_that_have_passed_to_another_part_keep_their_answers(
    tmp_path: Path, run: Task, merge: Task
) -> None:
    manifest = tmp_path / "m.jsonl"
    prompts = [f'{{"prompt": "USER: Is it {number}? ASSISTANT:"}}\n' for number in range(24)]
    manifest.write_text("".join(prompts[:12]))
    for number in range(3):
        assert run(manifest, "parts", "--shard", f"{number}/3").returncode == 0
    manifest.write_text("".join(prompts))
    summary = ("--summary-json", "summary.json", "--incremental")
    resumed = []
    for number in range(3):
        assert run(manifest, "parts", "--shard", f"{number}/3", *summary).returncode == 0
        resumed.append(json.loads((tmp_path / "summary.json").read_text())["resumed"])
    assert resumed == [8, 4, 0]
    assert merge(manifest, "-o", "merged.parquet").returncode == 0
    assert run(manifest, "one.parquet").returncode == 0
    assert_same(tmp_path / "one.parquet", tmp_path / "merged.parquet")


@pytest.mark.parametrize(
    "variables",
    [
        {f"SLURM_ARRAY_TASK_{name}": v for name, v in zip(NAMES, "2212", strict=True)},
        {"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "2"},
    ],
    ids=["slurm", "kubernetes"],
)
def test_a_task_knows_its_part(tmp_path: Path, variables: dict[str, str], run: Task) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "USER: Hi ASSISTANT:"}\n' * 2)
    assert run(manifest, "parts", "--shard", "auto", **variables).returncode == 0
    assert (tmp_path / "parts/part-00001-of-00002.parquet").exists()


def test_a_part_of_a_version_that_divides_otherwise(tmp_path: Path, run: Task) -> None:
    """Its rows are others, though all settings are the same."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "USER: Hi ASSISTANT:"}\n' * 4)
    arguments = ("parts", "--shard", "1/2")
    assert run(manifest, *arguments).returncode == 0
    record = tmp_path / "parts/_vlmbatch/part-00001-of-00002/run.json"
    values = json.loads(record.read_text())
    values["about"]["first_row"] = 1
    record.write_text(json.dumps(values))
    done = run(manifest, *arguments)
    assert done.returncode == 2 and "has 2 rows from row 1 on, expected 2 from 2" in done.stderr
    assert run(manifest, *arguments, "--overwrite").returncode == 0


def test_a_link_in_the_place_of_the_work_folders(tmp_path: Path, run: Task) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/_vlmbatch").symlink_to("../elsewhere")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "USER: Hi ASSISTANT:"}\n')
    done = run(manifest, "parts", "--shard", "0/1")
    assert done.returncode == 74 and "_vlmbatch is a symbolic link" in done.stderr
    assert list((tmp_path / "elsewhere").iterdir()) == []
