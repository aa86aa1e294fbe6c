"""What is refused before any work: each message says what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Run

MODEL = ("-m", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'MANIFEST'.\nTry `vlmbatch run --help`."),
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["run", "m.jsonl", "--max-token", "3"], "--max-tokens"),
        (
            ["run", *(f"photos/{number}.jpg" for number in range(99)), *MODEL],
            " ...): MANIFEST is a single name; of several files it is their folder, or a pattern",
        ),
        (
            ["run", "data/m.jsonl.gz", *MODEL],
            "add -o m.answers.parquet for a Parquet file, or -o -",
        ),
        (["run", "m.jsonl", "-o", "out.csv", *MODEL], "out.csv is of no kind that can be written"),
        (["run", "m.jsonl", "-o", ".", *MODEL], "give the folder's name, as in -o answers"),
        (["run", "m.jsonl", "-o", "..", *MODEL], "give the folder's name, as in -o ../answers"),
        (["run", "m.jsonl", "-o", "m.jsonl/", *MODEL], "m.jsonl/ is a file, not a folder"),
        (
            ["run", "m.jsonl", "-o", "old.parquet", "--shard-rows", "9", *MODEL],
            "is a file, and with --shard-rows it would be a folder of files: leave",
        ),
        (
            ["run", "m.jsonl", "-o", "folder.parquet", *MODEL],
            "such as -o folder.parquet/answers.parquet, or add --shard-rows",
        ),
        (
            ["run", "m.jsonl", "-o", "old.parquet", *MODEL],
            "old.parquet exists, and no run on it is known: add",
        ),
        (
            ["run", "old.parquet", "-o", "old.parquet", "--overwrite", *MODEL],
            "old.parquet is the manifest itself",
        ),
        (["run", "m.jsonl", "-o", "a.parquet"], "no model given: add --model"),
        (["run", "m.jsonl", "-o", "http://a/b.parquet", *MODEL], "web servers take no files"),
        (["run", "m.jsonl", "-o", "file:///a.parquet", *MODEL], "the path alone, as in -o /a.p"),
        (
            ["run", "s3://a/b.jsonl", "-o", "s3://a/b.jsonl", "--overwrite", *MODEL],
            "output s3://a/b.jsonl would replace the manifest s3://a/b.jsonl: choose another",
        ),
        (
            ["run", "s3://a/b.errors.jsonl", "-o", "s3://a/b.jsonl", *MODEL],
            "output s3://a/b.jsonl would replace the manifest s3://a/b.errors.jsonl",
        ),
        (
            ["run", "s3://a/rows/", "-o", "s3://a/rows/answers/", *MODEL],
            "lie one in the other, and the next run would take answers for rows",
        ),
        (["run", "m.jsonl", "-o", "s3://", *MODEL], "give a place in the store, as in s3://BUCKET"),
        (["run", "m.jsonl", "-o", "s3://a/b.csv", *MODEL], "s3://a/b.csv is of no kind that can"),
        (["run", "m.jsonl", "-o", "nope://a/b/", *MODEL], "no scheme nope:// is known; s3, gs,"),
        (["run", "m.jsonl", "-o", "hf://ann/rows", *MODEL], "as in hf://datasets/OWNER/NAME"),
        (["run", "m.jsonl", "-o", "hf://datasets/a/b@c", *MODEL], "as in hf://datasets/OWNER/"),
        (
            ["run", "m.jsonl", "-o", "hf://datasets/a/b/c.parquet", *MODEL],
            "a data set gets a folder of shards",
        ),
        (
            ["run", "m.jsonl", "-o", "a.parquet", "--write-text", "https://a/texts", *MODEL],
            "--write-text https://a/texts: web servers take no files",
        ),
        (
            ["run", "m.jsonl", "-o", "a.parquet", "--write-text", "hf://datasets/a/b", *MODEL],
            "--write-text hf://datasets/a/b: the Hub takes commits",
        ),
        (
            ["run", "m.jsonl", "-o", "a.parquet", "--write-text", "file:///texts", *MODEL],
            "give the path alone, as in --write-text /texts",
        ),
        (
            ["run", "m.jsonl", "-o", "s3://a/b.parquet", "--shard", "0/2", *MODEL],
            "--shard 0/2 needs a folder, where each task puts its part: s3://a/b.parquet names a",
        ),
        (
            ["run", "m.jsonl", "-o", "hf://datasets/a/b", "--shard", "0/2", *MODEL],
            "where each task puts its part: a data set gets one commit",
        ),
        (
            ["run", "-", "--summary-json", "https://a/b.json", *MODEL],
            "--summary-json https://a/b.json: web servers take no files",
        ),
        (
            ["run", "-", "--summary-json", "hf://datasets/a/b.json", *MODEL],
            "--summary-json hf://datasets/a/b.json: the Hub takes commits",
        ),
        (["run", "-", "--summary-json", "s3://a/b/", *MODEL], "s3://a/b/ names a folder"),
        (
            [
                "run",
                "m.jsonl",
                "-o",
                "s3://a/b.parquet",
                "--summary-json",
                "s3://a/b.parquet",
                *MODEL,
            ],
            "--summary-json s3://a/b.parquet is output s3://a/b.parquet",
        ),
        (
            ["validate", "-", "--errors", "hf://datasets/a/b/c.jsonl", *MODEL],
            "--errors hf://datasets/a/b/c.jsonl: the Hub takes commits",
        ),
        (
            ["validate", "s3://a/m.jsonl", "--errors", "s3://a/m.jsonl", *MODEL],
            "--errors s3://a/m.jsonl is the manifest itself",
        ),
        (
            ["validate", "s3://a/rows/", "--errors", "s3://a/rows/b.jsonl", *MODEL],
            "s3://a/rows/b.jsonl lies in the manifest's folder s3://a/rows/",
        ),
        (
            ["features", "m.jsonl", "-o", "s3://a/f", "--errors", "s3://a/f/e.jsonl", *MODEL],
            "--errors s3://a/f/e.jsonl lies in output s3://a/f",
        ),
        (["features", "s3://a/m.jsonl", "-o", "s3://a/", *MODEL], "lies in output s3://a/"),
        (["features", "m.jsonl", "-o", "hf://datasets/a/b", *MODEL], "the Hub takes commits"),
        (
            ["bench", "--json", "hf://datasets/a/b.json"],
            "--json hf://datasets/a/b.json: the Hub takes",
        ),
        (["merge", "out/", "-o", "s3://a/b/"], "parts are joined into one Parquet file"),
        (["merge", "s3://a/out", "-o", "s3://a/out/b.parquet"], "lies in the folder of parts"),
        (["report", "a.parquet", "-o", "s3://a/b.png"], "choose the name of a file that ends in"),
        (["report", "a.parquet", "-o", "http://a/b.html"], "web servers take no files"),
        (["run", "-", *MODEL, "--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
        (["run", "-", *MODEL, "--max-tokens", "many"], "'--max-tokens'"),
        (["run", "-", *MODEL, "--max-tokens", "many"], "got 'many'"),
        (["run", "-", *MODEL, "--limit", "-1"], "'--limit': must be at least 0, got -1"),
        (["run", "-", *MODEL, "--dtype", "fp8"], "'fp8' is not one of 'auto', 'float32'"),
        (["run", "-", *MODEL, "--image-input-shape", "336"], 'such as "1,3,336,336", got "336"'),
        (["run", "-", *MODEL, "--image-input-shape", "2,3,8,8"], 'got "2,3,8,8"'),
        (
            ["run", "-", *MODEL, "--disable-image-processor"],
            "--disable-image-processor and --image-input-type pixel_values contradict each other",
        ),
        (
            ["run", "-", *MODEL, "--disable-image-processor", "--image-processor", "other"],
            "--image-processor other and --disable-image-processor contradict each other",
        ),
        (["run", "-", *MODEL, "--gpus", "some"], "'--gpus': must be all, a number of GPUs, or"),
        (["run", "-", *MODEL, "--gpus", "0"], 'or a list such as 0,2,3, got "0"'),
        (["run", "-", *MODEL, "--gpus", ""], 'or a list such as 0,2,3, got ""'),
        (["run", "-", *MODEL, "--gpus", "0,2,00"], 'must name each GPU once, got "0,2,00"'),
        (
            ["run", "-", *MODEL, "--gpus", "2", "--device", "cpu"],
            "--gpus 2 with --device cpu, which uses none: --replicas N is for CPUs",
        ),
        (
            ["run", "-", *MODEL, "--gpus", "all", "--replicas", "2"],
            "--gpus all with --replicas 2, which is for CPUs: give one of them",
        ),
        (
            ["run", "-", *MODEL, "--tensor-parallel", "0"],
            "'--tensor-parallel': must be at least 1, got 0",
        ),
        (["run", "-", *MODEL, "--replicas", "0"], "'--replicas': must be at least 1, got 0"),
        (["run", "", *MODEL], "MANIFEST must not be empty"),
        (["run", "-", "-m", ""], "--model must not be empty"),
        (["run", "-", *MODEL, "--revision="], "--revision must not be empty"),
        (["run", "-", *MODEL, "--image-root="], "--image-root must be a path, got ''"),
        (["run", "-", *MODEL, "--chat-template="], "--chat-template must be a path, got ''"),
        (["run", "-", *MODEL, "--image-workers", "5000"], "must be from 0 to 1024, got 5000"),
        (["run", "-", *MODEL, "--host-memory", "9" * 400], "must be a size below 8388608TiB"),
        (["run", "-", *MODEL, "--temperature", "inf"], "must be finite and at least 0, got inf"),
        (["run", "-", *MODEL, "--summary-json", "-"], "--summary-json - would mix with the data"),
        (["run", "-", *MODEL, "--summary-json", "no/s.json"], "there is no folder no"),
        (["run", "-", *MODEL, "--sample", "0"], "'--sample': must be at least 1, got 0"),
        (
            ["run", "m.jsonl", "-o", "out/", *MODEL, "--shard", "0/4", "--sample", "9"],
            "--sample 9 and --shard 0/4 contradict each other",
        ),
        (["validate", "m.jsonl"], "no model given"),
        (["validate", "m.jsonl", *MODEL, "--errors", "m.jsonl"], "m.jsonl is the manifest itself"),
        (["validate", "m.jsonl", *MODEL, "--errors", "folder"], "folder is a folder"),
    ],
)
def test_refused(job: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    (tmp_path / "old.parquet").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    done = job("answered", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert (tmp_path / "m.jsonl").read_text() == "{}\n"
    assert (tmp_path / "old.parquet").read_text() == "old"


def test_overwrite_is_taken_at_its_word(job: Run, tmp_path: Path) -> None:
    (tmp_path / "old.parquet").write_text("old")
    done = job("answered", "run", "m.jsonl", "-o", "old.parquet", "--overwrite", *MODEL)
    assert done.returncode == 0


def test_a_bad_variable_is_named(job: Run) -> None:
    done = job("answered", "run", "-", *MODEL, VLMBATCH_TOP_P="high")
    assert done.returncode == 2
    assert "VLMBATCH_TOP_P in the environment" in done.stderr
    assert "'high'" in done.stderr


def test_a_misspelt_variable_is_named(job: Run) -> None:
    done = job("answered", "run", "-", *MODEL, VLMBATCH_MAX_TOKEN="5", VLMBATCH_SITE="x")
    assert done.returncode == 0
    assert "VLMBATCH_MAX_TOKEN in the environment sets no option" in done.stderr
    assert "did you mean VLMBATCH_MAX_TOKENS?" in done.stderr
    assert "VLMBATCH_SITE" not in done.stderr


def test_standard_input_needs_no_output_option(job: Run) -> None:
    assert '"destination": {},' in job("show_config", "run", "-", *MODEL).stdout
