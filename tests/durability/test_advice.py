"""Messages that advise an option: each is brought about here, and its advice then followed.

A message that is new in the code belongs in one of the two tables.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import call
from model_folder import make_model_folder
from PIL import Image
from resumable_runs import ResumableRun, read_rows, write_manifest

import vlmbatch

FINISHED = (0, 1)
SHARD_ROWS = 64
TEMPLATE = "{% for message in messages %}Q: {{ message.content }}{% endfor %} A:"


class Place(NamedTuple):
    """A manifest, a model and an output of a case's own."""

    run: ResumableRun
    shards: ResumableRun
    manifest: Path
    model: Path


Step = list[object]  # the options that are given besides, or a whole command


class Case(NamedTuple):
    """``prepare`` brings about the state, and may give options that are part of it.

    ``message``: what the command has to say then. ``advice``: its options in turn.
    """

    advised: str
    prepare: Callable[[Place], Step | None]
    message: str
    advice: list[Step]
    shards: bool = False


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def interrupted(run: ResumableRun, crash_at: str = "journal.acknowledged:6") -> Path:
    """The work folder of a run that was killed."""
    assert run.attempt(crash_at=crash_at) == -signal.SIGKILL
    return run.folder / f"{run.output.name}.vlmbatch"


def complete(run: ResumableRun) -> Path:
    assert run.attempt() in FINISHED
    return run.output


def damaged_record(place: Place) -> None:
    (interrupted(place.run) / "run.json").write_bytes(b"")


def foreign_record(place: Place) -> None:
    edit_json(interrupted(place.run) / "run.json", format=2)


def record_without_output(place: Place) -> None:
    place.run.folder.joinpath("out.parquet.vlmbatch").mkdir()
    place.run.folder.joinpath("out.parquet.vlmbatch/run.json").write_bytes(b"{")


def foreign_journal(place: Place) -> None:
    path = interrupted(place.run) / "journal-000001"
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 99)
    data[32:36] = struct.pack("<I", zlib.crc32(data[:32]))
    path.write_bytes(data)


def unreadable_journal(place: Place) -> None:
    path = interrupted(place.run) / "journal-000001"
    path.unlink()
    path.symlink_to(path.name)


def too_many_rows_in_the_journal(place: Place) -> None:
    edit_json(interrupted(place.run) / "run.json", num_rows=2)


def other_ids_in_the_journal(place: Place) -> None:
    """As if a file had been changed without its digest's notice."""
    work = interrupted(place.run)
    text = place.manifest.read_text()
    place.manifest.write_text(text.replace('"row-', '"other-'))
    other = json.loads((interrupted(place.shards) / "run.json").read_text())
    edit_json(work / "run.json", fingerprint=other["fingerprint"], settings=other["settings"])


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(path)
    metadata = table.schema.metadata
    pq.write_table(change(table).replace_schema_metadata(metadata), path)


def other_columns(place: Place) -> None:
    rewrite(complete(place.run), lambda table: table.drop_columns(["status"]))


def fewer_rows(place: Place) -> None:
    rewrite(complete(place.run), lambda table: table.slice(0, 9))


def rows_in_another_order(place: Place) -> Step:
    rewrite(complete(place.run), lambda table: table.sort_by([("row_index", "descending")]))
    return ["--retry-failed"]


def nothing_to_do(place: Place) -> None:
    complete(place.run)


def shards_of_another_size(place: Place) -> Step:
    interrupted(place.shards, "output.published:2")
    return ["--shard-rows", 50]


def damaged_pages(place: Place) -> Step:
    path = complete(place.run)
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)
    return ["--retry-failed"]


def missing_shard(place: Place) -> None:
    (complete(place.shards) / "part-000001.parquet").unlink()


def damaged_shard(place: Place) -> None:
    (complete(place.shards) / "part-000001.parquet").write_bytes(b"damaged")


def file_of_something_else(place: Place) -> None:
    place.run.output.write_bytes(b"data")


def folder_of_something_else(place: Place) -> None:
    place.shards.output.mkdir()
    (place.shards.output / "notes.txt").touch()


def changed_sampling(place: Place) -> Step:
    interrupted(place.run)
    return ["--seed", 3]


def grown_manifest(place: Place) -> None:
    complete(place.run)
    with place.manifest.open("a") as file:
        file.write('{"id": "new", "prompt": "new"}\n')


def prompts_called(name: str) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        place.manifest.write_text(place.manifest.read_text().replace('"prompt"', f'"{name}"'))

    return prepare


def ids_called_status(place: Place) -> None:
    place.manifest.write_text(place.manifest.read_text().replace('"id"', '"status"'))


def passes_through_called(name: str) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        place.manifest.write_text(place.manifest.read_text().replace('"n"', f'"{name}"'))

    return prepare


def ids_of_lists(place: Place) -> None:
    path = place.manifest.with_suffix(".parquet")
    pq.write_table(pa.table({"prompt": ["x", "y"], "id": [[1], [2]], "key": ["a", "b"]}), path)
    place.run.arguments[1] = path


def features_in_place_of_images(place: Place) -> None:
    np.save(place.manifest.with_name("a.npy"), np.zeros((4, 8), np.float32))
    place.manifest.write_text('{"prompt": "<image>x", "image": "a.npy"}\n')


def most_rows_fail(place: Place) -> Step:
    rows = [{"id": str(n), "prompt": "<image>x", "image": "a.png"} for n in range(1000)]
    place.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--max-error-rate", "5%"]


def template_file(place: Place) -> Path:
    path = place.manifest.with_name("own.jinja")
    path.write_text(TEMPLATE)
    return path


def option(*options: object) -> Callable[[Place], Step]:
    return lambda place: [*options]


CASES = {
    "damaged record": Case(
        "run_record --overwrite", damaged_record, "damaged .*--overwrite", [["--overwrite"], []]
    ),
    "record of another version": Case(
        "run_record --overwrite", foreign_record, "another version", [["--overwrite"], []]
    ),
    "damaged record alone": Case(
        "run_record --overwrite", record_without_output, "damaged", [["--overwrite"]]
    ),
    "journal of another version": Case(
        "journal --overwrite", foreign_journal, "another version", [["--overwrite"]]
    ),
    "unreadable journal": Case(
        "journal --overwrite", unreadable_journal, "cannot be read.*--overwrite", [["--overwrite"]]
    ),
    "rows beyond the end": Case(
        "journal --overwrite", too_many_rows_in_the_journal, "holds row", [["--overwrite"]]
    ),
    "other ids": Case(
        "journal --overwrite", other_ids_in_the_journal, "in the manifest but", [["--overwrite"]]
    ),
    "other columns": Case(
        "reader --overwrite", other_columns, "does not start with", [["--overwrite"]]
    ),
    "fewer rows": Case(
        "reader --overwrite", fewer_rows, "changed by something else", [["--overwrite"]]
    ),
    "another order": Case(
        "reader --overwrite", rows_in_another_order, "changed by some", [["--overwrite"]]
    ),
    "damaged pages": Case("reader --overwrite", damaged_pages, "cannot be read", [["--overwrite"]]),
    "missing shard": Case(
        "shards --overwrite", missing_shard, "is missing", [["--overwrite"]], shards=True
    ),
    "another number of rows a shard": Case(
        "shards --shard-rows",
        shards_of_another_size,
        "--shard-rows",
        [["--shard-rows", SHARD_ROWS]],
        shards=True,
    ),
    "the same, anew": Case(
        "shards --overwrite",
        shards_of_another_size,
        "--overwrite",
        [["--shard-rows", 50, "--overwrite"]],
        shards=True,
    ),
    "a file in the way": Case(
        "local_output --overwrite",
        file_of_something_else,
        "no run on it is known",
        [["--overwrite"]],
    ),
    "a folder in the way": Case(
        "run_beginning --overwrite",
        folder_of_something_else,
        "no run on it is known",
        [["--overwrite"]],
        shards=True,
    ),
    "other settings": Case(
        "changes --overwrite",
        changed_sampling,
        "seed: 0 -> 3",
        [["--seed", 3, "--overwrite"]],
    ),
    "a grown manifest": Case(
        "changes --incremental", grown_manifest, "--incremental to keep", [["--incremental"]]
    ),
    "nothing to do": Case(
        "summary --overwrite",
        nothing_to_do,
        "--retry-failed answers the error rows again, --overwrite starts anew",
        [["--retry-failed"], ["--overwrite"]],
    ),
    "a reserved name": Case(
        "columns --prompt-column",
        prompts_called("text"),
        "output reserves.*--prompt-column",
        [["--prompt-column", "text"]],
    ),
    "a reserved name of ids": Case(
        "columns --id-column",
        ids_called_status,
        "output reserves.*--id-column",
        [["--id-column", "status"]],
    ),
    "a reserved name that passes through": Case(
        "columns --column-prefix",
        passes_through_called("status"),
        "--column-prefix vlmbatch_",
        [["--column-prefix", "vlmbatch_"]],
    ),
    "ids without a text": Case(
        "parquet --id-column",
        ids_of_lists,
        "no text to be an id.*--id-column",
        # Then the first column passes through, whose name is reserved: the case before.
        [["--id-column", "key", "--column-prefix", "vlmbatch_"]],
    ),
    "prompts by another name": Case(
        "rows --prompt-column",
        prompts_called("question"),
        "name the prompt's column with --prompt-column",
        [["--prompt-column", "question", "--overwrite"]],
    ),
    "features": Case(
        "decode --image-input-type",
        features_in_place_of_images,
        "need --image-input-type image_features",
        [["--image-input-type", "image_features", "--overwrite"]],
    ),
    "no template": Case(
        "chat --chat-template",
        option("--chat"),
        "give one with --chat-template FILE",
        [["--chat", "--chat-template", template_file]],
    ),
    "a system prompt without a chat": Case(
        "prompt_text --chat",
        option("--system-prompt", "x", "--chat-template", template_file),
        "give --chat as well",
        [["--system-prompt", "x", "--chat-template", template_file, "--chat"]],
    ),
}


@pytest.fixture
def place(new_run: Callable[..., ResumableRun], tmp_path: Path) -> Place:
    manifest = write_manifest(tmp_path / "m.jsonl", 200)
    model = make_model_folder(tmp_path / "model")
    return Place(
        new_run(manifest, model), new_run(manifest, model, shard_rows=SHARD_ROWS), manifest, model
    )


@pytest.mark.parametrize("name", CASES)
def test_advice_helps(place: Place, name: str) -> None:
    case = CASES[name]
    run = place.shards if case.shards else place.run

    def start(step: Step) -> tuple[int, str]:
        command = run.start(*(part(place) if callable(part) else part for part in step))
        return command.wait(), command.stderr

    status, stderr = start(case.prepare(place) or [])
    message = " ".join(stderr.split())
    assert re.search(case.message, message), message
    for step in case.advice:
        status, stderr = start(step)
        assert status in FINISHED, stderr
    rows = read_rows(run.output)
    column = next(name for name in ("vlmbatch_status", "status") if name in rows[0])
    assert "ok" in {row[column] for row in rows}


def test_a_damaged_shard_is_moved_away(place: Place) -> None:
    damaged_shard(place)
    run = place.shards
    command = run.start()
    assert command.wait() == 2
    assert "is damaged" in command.stderr and "move this one away" in command.stderr
    (run.output / "part-000001.parquet").rename(run.folder / "away")
    assert run.start("--overwrite").wait() in FINISHED
    assert run.start().wait() in FINISHED


def test_a_run_with_too_many_errors(place: Place) -> None:
    run = place.run
    command = run.start(*most_rows_fail(place))
    assert command.wait() == 1 and not run.output.exists()
    assert "add --retry-failed" in command.stderr
    Image.new("RGB", (8, 8)).save(place.manifest.with_name("a.png"))
    command = run.start("--max-error-rate", "5%", "--retry-failed")
    assert command.wait() in FINISHED, command.stderr
    assert "ok" in {row["status"] for row in read_rows(run.output)}


STATES: dict[str, Callable[[Place], object]] = {
    "interrupted": lambda place: interrupted(place.run),
    "complete": lambda place: complete(place.run),
    "replaced": lambda place: complete(place.run).write_bytes(b"data"),
    "gone": lambda place: complete(place.run).unlink(),
    "without a work folder": lambda place: shutil.rmtree(f"{complete(place.run)}.vlmbatch"),
}


@pytest.mark.parametrize("state", STATES)
def test_next_step_of_status(place: Place, commands: Any, state: str) -> None:
    STATES[state](place)
    done = commands.run("status", place.run.output)
    assert done.wait() == 1, done.stderr
    step = done.stdout.rpartition("next: ")[2]
    for options in [[option] for option in re.findall("--[a-z-]+", step)] or [[]]:
        command = place.run.start(*options)
        assert command.wait() in FINISHED, command.stderr


def test_status_of_a_journal_with_too_many_rows(place: Place, commands: Any) -> None:
    too_many_rows_in_the_journal(place)
    done = commands.run("status", place.run.output)
    assert done.wait() == 74 and "Run with --overwrite" in done.stderr
    assert place.run.start("--overwrite").wait() in FINISHED


def test_what_the_command_line_lacks(place: Place, commands: Any, tmp_path: Path) -> None:
    """Each message adds what was left out before."""
    manifest, model = place.manifest, place.model
    common = ["--image-workers", 0, "--max-tokens", 1]
    folder = tmp_path / "folder"
    folder.mkdir()
    said = []
    for arguments in (
        [manifest, "-m", model],
        [manifest, "-o", "m.answers.parquet"],
        [manifest, "-m", model, "-o", f"{folder}.parquet/", "--shard-rows", 9],
        [manifest, "-m", model, "-o", "-", "--shard-rows", 9],
        [manifest, "-m", model, "-o", "-", "--limit", 1],
    ):
        command = commands.run("run", *arguments, *common, folder=tmp_path)
        said.append((command.wait(), command.stderr))
    assert said[0][0] == 2 and "add -o m.answers.parquet" in said[0][1]
    assert said[1][0] == 2 and "add --model" in said[1][1]
    assert said[3][0] == 2 and "--shard-rows needs a folder" in said[3][1]
    assert [status in FINISHED for status, _ in said] == [False, False, True, False, True]
    named = tmp_path / "named.parquet"
    named.mkdir()
    command = commands.run("run", manifest, "-m", model, "-o", named, *common)
    assert command.wait() == 2 and f"-o {named / 'answers.parquet'}" in command.stderr
    assert "add --shard-rows" in command.stderr
    for more in (["-o", named, "--shard-rows", 99], ["-o", named / "answers.parquet"]):
        command = commands.run("run", manifest, "-m", model, *more, *common)
        assert command.wait() in FINISHED, command.stderr
    (tmp_path / "job.toml").write_text("no_such_key = 3\n")
    command = commands.run("run", manifest, "--config", tmp_path / "job.toml")
    assert command.wait() == 2 and "max_tokens for --max-tokens" in command.stderr
    (tmp_path / "job.toml").write_text(f'max_tokens = 3\nmodel = "{model}"\n')
    command = commands.run(
        "run", manifest, "--config", tmp_path / "job.toml", "-o", tmp_path / "o.parquet"
    )
    assert command.wait() in FINISHED, command.stderr


FOLLOWED_ABOVE = {
    *(case.advised for case in CASES.values()),
    *("columns --image-column", "summary --retry-failed", "journal_counts --overwrite"),
    *("stopping --max-error-rate", "stopping --retry-failed"),
    *("status --overwrite", "status --retry-failed"),
    *(
        "session --model",
        "session --config",
        "local_output --shard-rows",
        "config_file --max-tokens",
    ),
}
_RESOLUTION = "needs a model whose images vary: in tests/e2e/test_resolution.py"
_SERVER = "of the server: in tests/serve"
_PARTS = "of sharded runs: in tests/e2e/test_sharded_runs.py"
_NAMES_IT = "names the option that was given, and advises none"
_ENGINES = "of several engines: in tests/commands/test_refusals.py, tests/session/test_engines.py"
_CLUSTER = "needs a cluster: in tests/ray_cluster/test_killed_machines.py"
_FOLDERS = "of folders of images: in tests/manifest/test_image_folder.py"
_PDFS = "of PDFs: in tests/manifest/test_pdf_rows.py"
_TEXTS = "of answers as files: in tests/output/test_text_folder.py"
_JSON = "of columns of JSON fields: in tests/e2e/test_json_answers.py"
_REQUESTS = "of OpenAI batch files: in tests/openai"
_SEVERAL = "of several answers: in tests/e2e/test_several_answers.py"
_BASE = "of images elsewhere: in tests/manifest/test_image_base.py"
_STORES = "of object stores: in tests/remote"
_URLS = "URLs of reports: in tests/commands/test_refusals.py"
_PUTS = "of outputs in stores: in tests/remote_outputs"
ELSEWHERE = {
    **dict.fromkeys(("kinds --prompt", "kinds --prompt-column", "kinds --sidecar"), _FOLDERS),
    **dict.fromkeys(
        ("manifest --prompt", "open --prompt", "manifest --sidecar", "rows --prompt"), _FOLDERS
    ),
    **dict.fromkeys(("image_folder --pages", "pages --pages", "kinds --pages"), _PDFS),
    **dict.fromkeys(("verify --choices", "choices --choices"), _NAMES_IT),
    "tar_file --dereference": "an option of tar",
    "tar_file --hard-dereference": "an option of tar",
    **dict.fromkeys(("pdf --dpi", "pdf --longest-side"), _PDFS),
    **dict.fromkeys(
        ("rows --format", "request_files --format", "openai_batch --format"), _REQUESTS
    ),
    **dict.fromkeys(("text_folder --id-column", "text_folder --overwrite"), _TEXTS),
    **dict.fromkeys(("stored_texts --write-text", "stored_texts --overwrite"), _PUTS),
    **dict.fromkeys(
        ("report_files --summary-json", "report_files --errors", "report_files --json"), _URLS
    ),
    "row_errors --errors": _NAMES_IT,
    **dict.fromkeys(("text_folder --write-text", "answer_texts --write-text"), _TEXTS),
    **dict.fromkeys(("answer_texts --sidecar", "places --write-text"), _TEXTS),
    **dict.fromkeys(("image_base --image-base", "open --image-base"), _BASE),
    "image_column --image-base": _BASE,
    **dict.fromkeys(("remote_sources --sidecar", "remote_sources --pages"), _STORES),
    **dict.fromkeys(("buckets --allow-bucket", "urls --allow-bucket"), _STORES),
    **dict.fromkeys(("target --overwrite", "folder_target --overwrite"), _PUTS),
    **dict.fromkeys(("remote_run --overwrite", "staging --overwrite"), _PUTS),
    "staging --work-dir": _PUTS,
    **dict.fromkeys(("remote_output --shard", "remote_output --shard-rows"), _NAMES_IT),
    **dict.fromkeys(("remote_output --ray", "remote_output --write-text"), _NAMES_IT),
    "part_objects --shard": _NAMES_IT,
    "second_pass --incremental": "in test_changed_runs.py, while a model loads",
    "attention --attention-backend": "in tests/attention/test_make_backend.py",
    "attention --force-reinstall": "a command of pip, which changes the machine",
    "attention --no-build-isolation": "a command of pip, which changes the machine",
    "attention --no-cache-dir": "a command of pip, which changes the machine",
    "attention --no-deps": "a command of pip, which changes the machine",
    "machine --force-reinstall": "a command of pip, which changes the machine",
    "machine --only-binary": "a command of pip, which changes the machine",
    "formats --force-reinstall": "a command of pip, which changes the machine",
    "formats --only-binary": "a command of pip, which changes the machine",
    "engine --kv-cache-tokens": "needs a real engine: below",
    "outputs --dtype": "of a model that overflows: tests/engine/test_constrained_rows.py",
    "engine --max-tokens": "needs a real engine: below",
    "kv_cache --kv-cache-tokens": "needs a real engine: below",
    "config --max-pixels": _RESOLUTION,
    "config --min-pixels": _RESOLUTION,
    "config --longest-side": _RESOLUTION,
    "config --quantize": _NAMES_IT,
    "quantization --quantize": "describes what a run was asked for, and advises nothing",
    **dict.fromkeys(("engine --gpus", "engine --replicas", "engine --device"), _ENGINES),
    **dict.fromkeys(("engines --gpus", "engines --replicas", "engines --device"), _ENGINES),
    "engines --tensor-parallel": "tells what was asked for: in tests/session/test_engines.py",
    "device_feed --image-decoder": "tells what is done instead: in tests/images",
    "machine --image-decoder": "tells what a package is for: in tests/commands/test_doctor.py",
    "image_processor --max-pixels": _RESOLUTION,
    "shrink --max-pixels": _RESOLUTION,
    "loading --device": "points to `vlmbatch doctor`: in tests/commands/test_doctor.py",
    "checkpoint --max-model-len": "needs a model of no known context: in tests/hf",
    "options --engine": _NAMES_IT,
    "options --max-num-seqs": "tells what has the refused option's place: in tests/hf",
    "kv_cache --kv-cache-dtype": "needs a GPU that is too old: in tests/engine/test_memory.py",
    "memory --max-batched-tokens": "needs a GPU that is too small",
    "memory --max-model-len": "needs a GPU that is too small",
    "pool --image-workers": "in tests/images/test_image_worker_faults.py",
    "process --image-timeout": "tells which limit was met: in tests/images/test_image_workers.py",
    "errors --image-timeout": "a row of the README's table",
    "urls --allow-domain": "needs the network: in tests/openai/test_fetch.py",
    "open --image-root": _NAMES_IT,
    "open --choices": _NAMES_IT,
    **dict.fromkeys(("contradictions --temperature", "contradictions --logprobs"), _SEVERAL),
    "contradictions --write-text": _SEVERAL,
    "open --keep-inputs": _NAMES_IT,
    "open --parse-json": _NAMES_IT,
    **dict.fromkeys(("json_columns --parse-json", "json_columns --keep-inputs"), _JSON),
    **dict.fromkeys(("json_columns --json-schema", "json_columns --column-prefix"), _JSON),
    **dict.fromkeys(("columns --parse-json", "columns --json-schema"), _JSON),
    "compressed --ultra": "an option of zstd",
    "compressed --long": "an option of zstd: in tests/manifest/test_manifest_jsonl.py",
    "hosts --api-key": _SERVER,
    "setup --model": "of `bench`: in tests/bench/test_bench_setup.py",
    "setup --random-weights": "of `bench`: in tests/bench/test_bench_setup.py",
    "random_checkpoint --random-weights": "of `bench`: in tests/bench/test_workload_inputs.py",
    "service --max-concurrent-requests": _SERVER,
    "completions --request-timeout": _SERVER,
    "preparation --limit-images-per-prompt": _SERVER,
    "server --api-key": _SERVER,
    "server --host": _SERVER,
    "server --kv-cache-tokens": _SERVER,
    "server --max-model-len": _SERVER,
    "server --port": _SERVER,
    "all_parts --incremental": _PARTS,
    "all_parts --overwrite": _PARTS,
    "all_parts --shard": _PARTS,
    "merge --overwrite": _PARTS,
    "parts --shard": _PARTS,
    "hub --config": "in tests/models/test_hub.py",
    "openai_batch --column-prefix": "in tests/openai/test_batch_files.py",
    "parts_status --incremental": _PARTS,
    "parts_status --retry-failed": _PARTS,
    "array_task --array": "of sbatch",
    "array_task --shard": "in tests/commands/test_array_task.py",
    "local_output --shard": _NAMES_IT,
    "local_output --ray": _NAMES_IT,
    "contradictions --shard": _NAMES_IT,
    "contradictions --sample": _NAMES_IT,
    "contradictions --summary-json": _NAMES_IT,
    "contradictions --overwrite": _NAMES_IT,
    "open --sample": _NAMES_IT,
    "plan --sample": "advises to time a run: tests/manifest/test_sample.py runs one",
    "report_files --page": "names the option of a page: in tests/report",
    "report_files --overwrite": "of pages: in tests/report",
    "inputs --manifest": "in tests/report/test_answer_page.py",
    "inputs --keep-inputs": "in tests/report/test_answer_page.py",
    "contradictions --incremental": _NAMES_IT,
    "contradictions --retry-failed": _NAMES_IT,
    "contradictions --gpus": _NAMES_IT,
    "contradictions --ray": _NAMES_IT,
    "contradictions --replicas": _NAMES_IT,
    "cluster --tensor-parallel": "tells what was asked for: in tests/ray_cluster",
    "text_config --tensor-parallel": "tells what was asked for: in tests/session/test_engines.py",
    "cluster --device": _NAMES_IT,
    "cluster --head": "of `ray start`",
    "cluster --ray": _CLUSTER,
    "parts_status --ray": "how a command of a cluster's run is known",
    "ray_address --ray": "the option itself",
    "run --incremental": _CLUSTER,
    "run --shard-rows": _CLUSTER,
    "doctor --json": "the option itself",
}
# Modules whose strings are options and their help, or the arguments of a command that they start.
NO_MESSAGES = {"vlmbatch/cli", "bench/run_process"} | {
    f"commands/{name}"
    for name in ("bench", "command", "features", "merge", "run", "serve", "status", "validate")
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def advising_strings() -> Iterator[str]:
    """``module --option`` for each string that is no docstring, no option and no help of one."""
    root = Path(vlmbatch.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if f"{path.parent.name}/{path.stem}" in NO_MESSAGES:
            continue
        module = path.parent.name if path.stem == "__init__" else path.stem
        tree = ast.parse(path.read_text())
        blocks = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        others = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, blocks) and node.body and isinstance(node.body[0], ast.Expr)
        }
        others |= {id(node) for node in declarations(tree)}
        for node in ast.walk(tree):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and id(node) not in others:
                for option in OPTION.findall(value):
                    yield f"{module} {option}"


def declarations(tree: ast.Module) -> Iterator[ast.Constant]:
    """Strings that declare options; not those that say what to do where one is absent."""
    makers = {"Opt"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            arguments = [
                argument.id for argument in node.value.args if isinstance(argument, ast.Name)
            ]
            if arguments == ["Opt"]:
                makers |= {name.id for name in node.targets if isinstance(name, ast.Name)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in makers
        ):
            values = [keyword.value for keyword in node.keywords if keyword.arg != "absent"]
            for value in (*node.args, *values):
                yield from (each for each in ast.walk(value) if isinstance(each, ast.Constant))


def test_no_advice_is_left_out() -> None:
    assert {*advising_strings()} == FOLLOWED_ABOVE | {*ELSEWHERE}
    assert not FOLLOWED_ABOVE & {*ELSEWHERE}


SAMPLE = Path(__file__).parents[2] / "samples"


def test_the_kv_cache_of_a_real_engine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Too small for the cache at all, then for a row, and then as large as the message says."""
    output = tmp_path / "out.parquet"
    arguments = ["run", SAMPLE / "manifest.jsonl", "-m", SAMPLE / "tiny-llava", "-o", output]
    arguments += ["--limit", 2, "--image-workers", 0, "--max-tokens", 8, "--device", "cpu"]
    assert call([*arguments, "--kv-cache-tokens", 1]) == 2
    found = re.search(r"--kv-cache-tokens must be at least (\d+), got 1", capfd.readouterr().err)
    assert found is not None
    assert call([*arguments, "--kv-cache-tokens", found[1]]) == 1
    message = read_rows(output)[0]["error_message"]
    found = re.search(r"may take (\d+) tokens.* raise --kv-cache-tokens or lower", message)
    assert found is not None, message
    size = 2 * int(found[1])
    assert call([*arguments, "--kv-cache-tokens", size, "--retry-failed"]) == 0
    assert [row["status"] for row in read_rows(output)] == ["ok", "ok"]
