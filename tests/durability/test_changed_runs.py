"""A run that is not the one that an output is of: refused, or asked for by an option."""

from __future__ import annotations

import json
import re
import shutil
import signal

import pytest
from model_folder import make_model_folder
from PIL import Image
from resumable_runs import WITH_ERRORS, digests, read_rows, write_manifest, write_questions

NUM_ROWS = 300


@pytest.fixture
def own_manifest(tmp_path):
    return write_manifest(tmp_path / "manifest.jsonl", NUM_ROWS)


def has_request(row):
    """Whether the row reaches the engine."""
    return row["status"] == "ok" or row["error_code"] == "engine_error"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture(
    params=["killed", pytest.param("complete", marks=pytest.mark.soak), "complete shards"]
)
def begun(request, new_run, own_manifest, tmp_path):
    """A run on a manifest and a model of its own that is not finished, or is."""
    model = make_model_folder(tmp_path / "model")
    shard_rows = 64 if request.param == "complete shards" else None
    run = new_run(own_manifest, model, shard_rows=shard_rows)
    if request.param == "killed":
        assert run.attempt(crash_at="journal.acknowledged:4") == -signal.SIGKILL
    else:
        assert run.attempt() == WITH_ERRORS
    return run


CHANGES = {  # what changes, and what the message has of it
    "sampling": (["--max-tokens", 9], "max_tokens: 8 -> 9"),
    "seed": (["--seed", 5], "seed: 0 -> 5"),
    "limit": (["--limit", 250], "limit: "),
    "dtype": (["--dtype", "float16"], "dtype: "),
    "template": (["--prompt-template", "Q: {prompt}"], 'prompt_template: none -> "Q: {prompt}"'),
    "column": (["--image-column", "n"], "columns: "),
    "model": ("model/config.json", "model: "),
    "tokenizer": ("model/tokenizer_config.json", "model: "),
    "manifest": ("manifest.jsonl", "manifest: "),
}


def test_refused_by_name_and_nothing_touched(begun, expected, tmp_path):
    before = digests(begun.folder)
    for change, (how, message) in CHANGES.items():
        options = how if isinstance(how, list) else []
        file = None if options else tmp_path / how
        original = file and file.read_bytes()
        if change == "manifest":
            edit(file, "What is 7?", "What is 7, please?")
        elif file:
            edit(file, "{", "{ ")
        command = begun.start(*options)
        assert command.wait() == 2, change
        assert message in command.stderr and "--overwrite" in command.stderr
        assert ("--incremental" in command.stderr) == (change in ("manifest", "limit"))
        assert not command.has("loading") and digests(begun.folder) == before
        if file:
            file.write_bytes(original)
    begun.finish(expected)


def test_chat_beside_a_template_is_another_run(begun, tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{% for message in messages %}Q: {{ message.content }}{% endfor %}")
    given = ["--chat-template", template]
    begun.acknowledged.clear()
    assert begun.start("--overwrite", *given, crash_at="journal.acknowledged:2").wait() == -9
    command = begun.start(*given, "--chat")
    assert command.wait() == 2 and "\n  chat: false -> true\n" in command.stderr
    template.write_text(template.read_text() + " ")
    command = begun.start(*given)
    assert command.wait() == 2
    digest = "[0-9a-f]{12}"
    changed = f'chat_template: its content is another \\("{digest}" -> "{digest}"\\)\n'
    assert re.search(changed, command.stderr), command.stderr


def test_a_manifest_in_another_folder_names_other_images(new_run, open_folder):
    """Its content is the same, and so are the paths in it; a message cuts long ones short."""
    for name in ("a", "b"):
        (open_folder / name).mkdir()
        write_questions(open_folder / name / "m.jsonl", 3, 2)
    run = new_run(open_folder / "a/m.jsonl")
    assert run.attempt() == 0
    before = digests(run.folder)
    run.arguments[1] = open_folder / "b/m.jsonl"
    command = run.start()
    assert command.wait() == 2 and digests(run.folder) == before
    assert f'another folder ("{open_folder}/a" -> "{open_folder}/b")' in command.stderr
    assert "--incremental to keep" in command.stderr
    command = run.start("--incremental")
    assert command.wait() == 0 and sorted(command.computed) == [*range(6)]
    assert run.start().wait() == 0


@pytest.mark.parametrize("shard_rows", [None, 64])
def test_a_run_that_has_answered_nothing_may_have_other_settings(new_run, expected, shard_rows):
    run = new_run(shard_rows=shard_rows)
    command = run.start("--max-tokens", 9, load_seconds=60)
    command.wait_until(lambda: command.has("loading"))
    command.send_signal(signal.SIGKILL)
    command.wait()
    begun = run.run_id()
    assert begun is not None
    run.finish(expected)
    assert run.run_id() != begun


def test_what_an_overwrite_would_replace_is_not_nothing(begun):
    """Nothing is answered yet of the new run, and the old one's output is still there."""
    begun.attempt()
    command = begun.start("--overwrite", "--max-tokens", 9, load_seconds=60)
    command.wait_until(lambda: command.has("loading"))
    command.send_signal(signal.SIGKILL)
    command.wait()
    before = digests(begun.folder)
    command = begun.start("--max-tokens", 7)
    assert command.wait() == 2 and "max_tokens: 9 -> 7" in command.stderr
    assert digests(begun.folder) == before
    # Nor where the old output is at a URL alone.
    shutil.rmtree(begun.output) if begun.output.is_dir() else begun.output.unlink()
    assert begun.start("--max-tokens", 7).wait() == 2


def test_overwrite_starts_anew(begun, expected):
    command = begun.start("--overwrite", "--max-tokens", 1)
    assert command.wait() == WITH_ERRORS
    assert set(command.computed) == {row["row_index"] for row in expected if has_request(row)}
    counts = [row["completion_tokens"] for row in read_rows(begun.output) if row["n"] % 50 != 19]
    assert set(counts) == {None, 1}
    begun.acknowledged.clear()
    assert begun.attempt("--overwrite") == WITH_ERRORS
    begun.check_finished(expected)


def test_a_killed_overwrite_goes_on_without_it(begun, expected):
    begun.acknowledged.clear()
    assert begun.attempt("--overwrite", crash_at="journal.acknowledged:6") == -signal.SIGKILL
    assert len(begun.acknowledged) >= 80
    begun.finish(expected)


def test_complete_has_nothing_to_do(begun, expected):
    begun.finish(expected)
    before = digests(begun.folder)
    times = [path.stat().st_mtime_ns for path in begun.folder.rglob("*.parquet")]
    again = begun.start()
    assert again.wait() == WITH_ERRORS
    assert not again.has("loading") and digests(begun.folder) == before
    assert [path.stat().st_mtime_ns for path in begun.folder.rglob("*.parquet")] == times
    assert f"{NUM_ROWS} done by an earlier run" in again.stderr
    assert "prompt_too_long" in again.stderr


def test_an_output_that_is_gone_is_made_again(begun, expected):
    begun.finish(expected)
    shutil.rmtree(begun.output) if begun.output.is_dir() else begun.output.unlink()
    begun.acknowledged.clear()
    begun.finish(expected)


def test_retry_failed(begun, expected, tmp_path):
    """The error rows alone are computed again, whether the run had come to its end or not."""
    begun.attempt()
    failed = {row["row_index"] for row in read_rows(begun.output) if row["status"] == "error"}
    again = begun.start("--retry-failed")
    assert again.wait() == WITH_ERRORS
    assert set(again.computed) == {row for row in failed if has_request(expected[row])}
    begun.check_finished(expected)


def test_retry_failed_that_is_killed_goes_on(begun, expected):
    begun.attempt()
    begun.acknowledged.clear()
    for point in ("run_record.synced", "run_record.renamed", "journal.synced", "output.synced"):
        begun.attempt("--retry-failed", crash_at=point)
    begun.finish(expected)


def test_incremental(begun, own_manifest, new_run):
    """Rows inserted, edited, deleted and moved: the others keep their answers."""
    rows = [json.loads(line) for line in own_manifest.read_text().splitlines()]
    edited = rows[40:60]
    for row in edited:
        row["prompt"] = f"Why is it {row['n']}?"
    new = [{"id": f"new-{index}", "prompt": f"Who is {index}?", "n": -index} for index in range(30)]
    changed = [*rows[250:], *new[:10], *rows[20:120], *new[10:], *rows[130:250]]
    before = digests(begun.folder)
    own_manifest.write_text("".join(json.dumps(row) + "\n" for row in changed))
    undisturbed = new_run(own_manifest, begun.arguments[3])
    assert undisturbed.attempt() == WITH_ERRORS
    wanted = read_rows(undisturbed.output)
    assert begun.start().wait() == 2 and digests(begun.folder) == before
    command = begun.start("--incremental")
    assert command.wait() == WITH_ERRORS
    changed_ids = {row["id"] for row in (*new, *edited)}
    unanswered = {row["id"] for row in wanted if row["status"] == "error"}
    kept = {f"row-{index}" for index in begun.acknowledged} - changed_ids - unanswered
    to_engine = {row["id"] for row in wanted if has_request(row)}
    computed = {changed[index]["id"] for index in command.computed}
    assert computed <= to_engine - kept
    assert len(to_engine - kept - computed) <= 16  # a group that was safe before it was told
    begun.check_finished(wanted)


def test_an_extended_manifest_again_and_again(new_run, tmp_path):
    """A folder that a cron job fills: each night the new rows alone are computed."""
    manifest = tmp_path / "manifest.jsonl"
    run = new_run(manifest, shard_rows=64)
    before = 0
    for num_rows in (60, 130, 131, 300):
        write_manifest(manifest, num_rows)
        command = run.start("--incremental")
        assert command.wait() == WITH_ERRORS, command.stderr
        new = {index for index in range(before, num_rows) if index % 50 not in (17, 18)}
        assert new <= set(command.computed)
        assert len(command.computed) <= len(new) + 10
        before = num_rows
    undisturbed = new_run(manifest)
    assert undisturbed.attempt() == WITH_ERRORS
    run.check_finished(read_rows(undisturbed.output))


@pytest.mark.parametrize("crash_at", ["", "journal.acknowledged:2"])
def test_images_changed_behind_an_unchanged_manifest(new_run, tmp_path, crash_at):
    """The rows that show them are answered again, and no others."""
    manifest = write_questions(tmp_path / "m.jsonl", 20, 2)
    run = new_run(manifest, group_rows=12)
    assert run.attempt(crash_at=crash_at) == (-9 if crash_at else WITH_ERRORS)
    first = set(run.acknowledged)
    assert len(first) >= 12
    image = min(row % 20 for row in first if row % 20 != 17)  # which is no picture
    changed = {image, image + 20}
    Image.new("RGB", (8, 8), (99, 99, 99)).save(tmp_path / f"{image}.png")
    command = run.start("--incremental")
    assert command.wait() == WITH_ERRORS
    rows = read_rows(run.output)
    unanswered = {row["row_index"] for row in rows if row["status"] == "error"}
    computed = set(command.computed)
    assert changed <= computed and not computed & (first - changed - unanswered)
    before = digests(run.folder)
    command = run.start("--incremental")
    assert command.wait() == WITH_ERRORS
    assert not command.has("loading") and digests(run.folder) == before
    undisturbed = new_run(manifest)
    assert undisturbed.attempt() == WITH_ERRORS
    run.check_finished(read_rows(undisturbed.output))


@pytest.mark.parametrize(
    ("how", "options"), [("replaced", ["--incremental"]), ("edited in place", [])]
)
def test_a_manifest_that_changes_before_it_is_read_again(new_run, own_manifest, how, options):
    """No row of the new one is answered under the old one's name."""
    run = new_run(own_manifest)
    command = run.start(decoder_seconds=0.5)
    command.wait_until(lambda: command.has("decoders"))
    content = own_manifest.read_text().replace("What is", "Who was")
    if how == "replaced":
        other = own_manifest.with_name("other.jsonl")
        other.write_text(content)
        other.replace(own_manifest)
    else:
        own_manifest.write_text(content)
    assert command.wait() == 2 and not command.computed
    assert "changed while it was being read" in command.stderr
    assert "--incremental" in command.stderr and not run.output.exists()
    assert run.attempt(*options) == WITH_ERRORS
    undisturbed = new_run(own_manifest)
    assert undisturbed.attempt() == WITH_ERRORS
    run.check_finished(read_rows(undisturbed.output))


@pytest.mark.parametrize("when", ["decoders", "loading"])
def test_a_manifest_that_grows_before_it_is_answered(new_run, own_manifest, expected, when):
    run = new_run(own_manifest)
    command = run.start(decoder_seconds=0.3, load_seconds=0.3)
    command.wait_until(lambda: command.has(when))
    with own_manifest.open("a") as file:
        file.write('{"id": "row-0", "prompt": "the next run refuses it"}\n')
    assert command.wait() == WITH_ERRORS
    run.check_finished(expected)


def test_without_keys_nothing_is_taken_for_unchanged(new_run, tmp_path):
    run = new_run(write_questions(tmp_path / "m.jsonl", 4, 1))
    assert run.attempt() == 0
    (keys,) = (run.folder / "out.parquet.vlmbatch").glob("keys-*")
    keys.unlink()
    command = run.start("--incremental")
    assert command.wait() == 0 and sorted(command.computed) == [0, 1, 2, 3]


def test_another_number_of_rows_a_shard_is_refused(new_run, expected):
    run = new_run(shard_rows=64)
    assert run.attempt(crash_at="output.published:2") == -signal.SIGKILL
    before = digests(run.folder)
    command = run.start("--shard-rows", 50)
    assert command.wait() == 2 and "--shard-rows" in command.stderr
    assert digests(run.folder) == before
    run.finish(expected)
