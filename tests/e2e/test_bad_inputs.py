"""The corpus of bad inputs through the real command: each row's result, each refusal."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import real_command
from corpus_features import feature_rows
from corpus_refusals import CODE_RAN, PICKLE_RAN, REFUSALS, Refusal
from corpus_rows import (
    HUGE_LINE_BYTES,
    CorpusRow,
    corpus_rows,
    mistakes,
    rows_of_this_machine,
    rows_out_of_root,
)
from fast_command import FastCommands
from in_process import call
from make_corpus import HERE as CORPUS
from make_corpus import corpus_files, rows_manifest
from PIL import Image, ImageChops, ImageStat

from vlmbatch.manifest.schema import RESULT_SCHEMA

MODEL = CORPUS.parents[1] / "samples/tiny-llava"
MAX_TOKENS = 32
CUT_SHORT = ("truncated.jpg", "no-end.jpg")  # in which nothing else is wrong


def run(manifest: Path, *options: object) -> list[dict[str, Any]]:
    """The rows that ``vlmbatch run`` writes; it may say that some are errors, and no more."""
    output = manifest.with_suffix(".parquet")
    arguments = ["run", manifest, "-m", MODEL, "-o", output, "--max-tokens", MAX_TOKENS, *options]
    done = real_command.run(*arguments, folder=manifest.parent)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    records = pq.read_table(output).to_pylist()
    assert done.returncode == any(record["status"] == "error" for record in records)
    return records


@dataclass(frozen=True)
class Corpus:
    folder: Path
    manifest: Path
    rows: list[CorpusRow]
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A copy of the corpus with the rows that only this machine can have, and its output."""
    folder = tmp_path_factory.mktemp("corpus") / "copy"
    shutil.copytree(CORPUS, folder)
    manifest = folder / "rows.jsonl"
    rows = [*corpus_rows(), *rows_of_this_machine(folder)]
    manifest.write_bytes(rows_manifest(rows))
    return Corpus(folder, manifest, rows, run(manifest))


def test_the_committed_corpus_is_what_its_script_writes() -> None:
    written = dict(corpus_files())
    folders = ("images", "features", "manifests", "checkpoints")
    paths = [path for name in folders for path in (CORPUS / name).rglob("*") if path.is_file()]
    paths += CORPUS.glob("*rows.jsonl")
    assert {str(path.relative_to(CORPUS)) for path in paths} == written.keys()
    assert sum(path.stat().st_size for path in paths) < 300_000
    for path in paths:
        assert alike(path, written[str(path.relative_to(CORPUS))]), path


def alike(path: Path, content: bytes) -> bool:
    """Equal bytes, or, as encoders differ from version to version, nearly equal pixels."""
    if path.read_bytes() == content or path.suffix == ".parquet":
        return True
    try:
        with Image.open(path) as one, Image.open(io.BytesIO(content)) as other:
            difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    except OSError:  # it is to be undecodable
        return path.suffix == ".jpg"
    return max(ImageStat.Stat(difference).mean) < 5


def test_every_row_of_the_corpus_has_its_result(corpus: Corpus) -> None:
    assert mistakes(corpus.rows, corpus.records) == []


def test_every_row_of_features_has_its_result(corpus: Corpus) -> None:
    manifest = corpus.folder / "feature-rows.jsonl"
    records = run(manifest, "--image-input-type", "image_features")
    assert mistakes(feature_rows(), records) == []
    assert not (corpus.folder / PICKLE_RAN).exists()


def test_columns_that_are_no_input_pass_through(corpus: Corpus) -> None:
    by_id = {record["id"]: record for record in corpus.records}
    assert by_id["extra"]["weight"] == 0.5
    assert by_id["extra"]["note"] == {"by": "a user"}
    assert by_id["null-extra"]["note"] is None


def test_good_rows_are_answered_as_without_the_bad_ones(corpus: Corpus) -> None:
    rows = [row for row in corpus.rows if row.code is None]
    manifest = corpus.folder / "good.jsonl"
    manifest.write_bytes(rows_manifest(rows))
    records = run(manifest)
    results = [
        (record["text"], record["finish_reason"], record["completion_tokens"])
        for record in corpus.records
        if record["status"] == "ok"
    ]
    assert results == [
        (record["text"], record["finish_reason"], record["completion_tokens"]) for record in records
    ]


def test_no_image_leads_out_of_the_root(corpus: Corpus) -> None:
    rows = rows_out_of_root(corpus.folder)
    manifest = corpus.folder / "images/root.jsonl"
    manifest.write_bytes(rows_manifest(rows))
    records = run(manifest, "--image-root", corpus.folder / "images")
    assert mistakes(rows, records) == []


@pytest.mark.parametrize("decode", [False, True])
def test_validate_finds_the_same_errors(
    commands: FastCommands, corpus: Corpus, decode: bool
) -> None:
    """But for what a picture's header cannot tell, unless it decodes whole pictures."""
    errors = corpus.folder / "errors.jsonl"
    arguments = ["validate", corpus.manifest, "-m", MODEL, "--errors", errors]
    command = commands.run(*arguments, *(["--decode-images"] if decode else []))
    assert command.wait() == 1, command.stderr
    assert "Traceback" not in command.stderr
    assert command.memory_taken < HUGE_LINE_BYTES
    found = [json.loads(line) for line in errors.read_text().splitlines()]
    expected = [
        (record["row_index"], record["id"], record["error_code"], record["error_message"])
        for record in corpus.records
        if record["status"] == "error"
        and (decode or not any(name in record["id"] for name in CUT_SHORT))
    ]
    assert [
        (row["row_index"], row["id"], row["error_code"], row["error_message"]) for row in found
    ] == expected
    assert {row["line"] for row in found} == {row["row_index"] + 1 for row in found}


def test_plan_counts_the_same_errors(
    corpus: Corpus, weightless: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["plan", corpus.manifest, "-m", weightless, "--json", "-q"]) == 1
    found = json.loads(capfd.readouterr().out)
    expected = Counter(
        record["error_code"]
        for record in corpus.records
        if record["status"] == "error" and not any(name in record["id"] for name in CUT_SHORT)
    )
    assert (found["rows"], found["errors"]) == (len(corpus.records), expected)


def test_a_page_shows_every_row_of_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert call(["report", corpus.manifest.with_suffix(".parquet"), "-o", page, "-q"]) == 0
    data = json.loads(page.read_text().partition('id="data">')[2].partition("</script>")[0])
    shown = {row["id"]: row for row in data["rows"]}
    assert shown.keys() == {record["id"] for record in corpus.records}
    for record in corpus.records:
        pictures = shown[record["id"]]["images"]
        if record["status"] == "ok" and record["image_tokens"]:
            assert pictures and all(url.startswith("data:image/jpeg;base64,") for url in pictures)


@pytest.fixture(scope="module")
def weightless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model without its weights: who tries to load it meets another error."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.manifest)
def test_refused_before_the_model_is_loaded(
    refusal: Refusal, weightless: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest, output = CORPUS / refusal.manifest, tmp_path / "out.parquet"
    for command in (["run", manifest, "-o", output], ["validate", manifest], ["plan", manifest]):
        assert call([*command, "-m", weightless]) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ") and "Traceback" not in said.err
        assert all(part in said.err for part in refusal.says), said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
def test_an_unreadable_manifest_is_refused(
    weightless: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.touch(mode=0)
    assert call(["run", manifest, "-m", weightless, "-o", tmp_path / "out.parquet"]) == 2
    assert f"{manifest}: cannot be read: Permission denied" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["empty.jsonl", "blank.jsonl", "empty.parquet"])
def test_an_empty_manifest_gives_an_empty_output(name: str, tmp_path: Path) -> None:
    manifest, output = CORPUS / "manifests" / name, tmp_path / "out.parquet"
    assert call(["run", manifest, "-m", MODEL, "-o", output, "-q"]) == 0
    table = pq.read_table(output)
    assert table.num_rows == 0
    assert table.schema.names == RESULT_SCHEMA.names


def test_pickled_weights_are_refused(
    weightless: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "pickles"
    shutil.copytree(weightless, model)
    shutil.copy(CORPUS / "checkpoints/pickles/pytorch_model.bin", model)
    assert call(["run", CORPUS / "rows.jsonl", "-m", model, "-o", "out.parquet", "-q"]) == 2
    said = capfd.readouterr().err
    assert "pytorch_model.bin" in said and "safetensors" in said
    assert not Path(PICKLE_RAN).exists() and not Path("out.parquet").exists()


def test_a_checkpoints_own_code_is_never_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    model = CORPUS / "checkpoints/remote-code"
    for command in (["run", "-o", "out.parquet"], ["validate"]):
        assert call([*command, CORPUS / "rows.jsonl", "-m", model]) == 2
        said = capfd.readouterr().err
        assert "config.json" in said and "auto_map" in said and "never run" in said
    assert not Path(CODE_RAN).exists() and list(tmp_path.iterdir()) == []


def test_an_unknown_type_of_model_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = CORPUS / "checkpoints/unknown-type"
    for command in (["run", "-o", tmp_path / "out.parquet"], ["validate"]):
        assert call([*command, CORPUS / "rows.jsonl", "-m", model]) == 2
        said = capfd.readouterr().err
        assert f"{model / 'config.json'}: model_type is 'vlm_of_tomorrow'" in said
    assert list(tmp_path.iterdir()) == []


def test_no_pickle_is_run_for_an_image(corpus: Corpus) -> None:
    """The rows with pickled features are errors; that they were not unpickled shows here."""
    assert not (corpus.folder / PICKLE_RAN).exists()


def test_the_corpus_in_parts(corpus: Corpus) -> None:
    """Every row and error as in one run, with the numbers and messages of the whole."""
    arguments = ["run", corpus.manifest, "-m", MODEL, "--max-tokens", MAX_TOKENS, "-o", "parts"]
    for number in range(2):
        done = real_command.run(*arguments, "--shard", f"{number}/2", folder=corpus.folder)
        assert done.returncode == 1, done.stderr
    merged = corpus.folder / "merged.parquet"
    done = real_command.run("merge", "parts", "-o", merged, folder=corpus.folder)
    assert done.returncode == 1, done.stderr
    assert pq.read_table(merged).to_pylist() == corpus.records


@pytest.mark.parametrize(
    ("output", "shard", "says"),
    [
        ("parts", "5/4", "0/4 to 3/4, got 5/4"),
        ("parts", "4/4", "parts are numbered from 0"),
        ("parts", "0/0", "from 1 to 99999 parts"),
        ("parts", "x", 'got "x"'),
        ("parts", "auto", "neither SLURM_ARRAY_TASK_ID"),
        ("file.parquet", "0/4", "needs a folder"),
        ("of-others", "0/4", "in 3 parts (part-00001-of-00003.parquet), not in 4"),
        ("of-one", "0/4", "is of a run without --shard"),
    ],
)
def test_a_part_that_cannot_be_answered(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], output: str, shard: str, says: str
) -> None:
    (tmp_path / "of-others/_vlmbatch/part-00001-of-00003").mkdir(parents=True)
    (tmp_path / "of-one").mkdir()
    (tmp_path / "of-one/part-000000.parquet").write_bytes(b"")
    before = {*tmp_path.rglob("*")}
    arguments = ["run", CORPUS / "rows.jsonl", "-m", MODEL, "-o", tmp_path / output]
    assert call([*arguments, "--shard", shard]) == 2
    assert says in capfd.readouterr().err
    assert {*tmp_path.rglob("*")} == before
