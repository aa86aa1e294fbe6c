"""Every file that a command writes beside every other that it reads or writes: none is replaced."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from in_process import call

from vlmbatch.durable.run_paths import work_folder_path

READ = (
    "--config",
    "--chat-template",
    "--image-root",
    "--model",
    "--tokenizer",
    "--image-processor",
)
FOLDERS = ("--image-root", "--model", "--tokenizer", "--image-processor")
OPTIONS = {
    "run": ("MANIFEST", "--output", "--summary-json", *READ),
    "validate": ("MANIFEST", "--errors", "--summary-json", *READ),
    "features": (
        *("MANIFEST", "--output", "--errors", "--summary-json"),
        *("--config", "--image-root", "--model", "--image-processor"),
    ),
    "bench": ("--json", "--config", "--model"),
}
WRITTEN = ("--output", "--errors", "--summary-json", "--json")
CASES = [
    (command, written, other, by)
    for command, options in OPTIONS.items()
    for written, other in itertools.permutations(options, 2)
    for by in ("name", "absolute name", "symbolic link", "hard link")
    if written in WRITTEN
    and (other not in WRITTEN or written < other)
    and not (by == "hard link" and (other in FOLDERS or other in WRITTEN))
]


@pytest.fixture(autouse=True)
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The commands that were not refused: none of them does anything here."""
    names: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        def job(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            raise NotImplementedError(name)

        return job

    stubs = {
        "vlmbatch.jobs.run": ("run",),
        "vlmbatch.jobs.validate": ("validate",),
        "vlmbatch.jobs.features": ("write_features",),
        "vlmbatch.bench.bench": ("bench",),
        "vlmbatch.bench.report": ("as_json", "print_report"),
    }
    for module_name, functions in stubs.items():
        module = ModuleType(module_name)
        module.__dict__.update({name: note(name) for name in functions})
        monkeypatch.setitem(sys.modules, module_name, module)
    monkeypatch.chdir(tmp_path)
    yield names


def set_up(folder: Path, command: str) -> dict[str, str]:
    """A file or folder for every option of a command, none of them in the way of another."""
    values = {}
    for option in OPTIONS[command]:
        name = option.strip("-").lower()
        if option in FOLDERS:
            (folder / name).mkdir()
            (folder / name / "config.json").write_text("{}")
            values[option] = name
        elif option == "MANIFEST":
            (folder / "m.jsonl").write_text("{}\n")
            values[option] = "m.jsonl"
        elif option == "--output":
            values[option] = "features" if command == "features" else "answers.parquet"
        else:
            values[option] = f"{name}.parquet"  # a name that an output may have too
            if option in READ:
                (folder / values[option]).write_text("")
    return values


def command_line(command: str, values: dict[str, str]) -> list[str]:
    given = [part for option in values if option != "MANIFEST" for part in (option, values[option])]
    return [command, *([values["MANIFEST"]] if "MANIFEST" in values else []), *given]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_refused(
    tmp_path: Path, reached: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> str:
    before = contents(tmp_path)
    assert call(arguments) == 2
    assert not reached
    assert contents(tmp_path) == before
    message = capsys.readouterr().err
    assert "choose another" in message or "is a folder" in message or "is a file" in message
    return message


@pytest.mark.parametrize("command", OPTIONS)
def test_files_apart_are_taken(tmp_path: Path, reached: list[str], command: str) -> None:
    call(command_line(command, set_up(tmp_path, command)))
    assert len(reached) == 1


@pytest.mark.parametrize(("command", "written", "other", "by"), CASES)
def test_a_file_may_not_replace_another(
    tmp_path: Path,
    reached: list[str],
    capsys: pytest.CaptureFixture[str],
    command: str,
    written: str,
    other: str,
    by: str,
) -> None:
    values = set_up(tmp_path, command)
    target = tmp_path / values[other]
    if written == "--output" and command == "run" and other in FOLDERS:
        values[written] = f"{values[other]}/"
    elif by == "name":
        values[written] = f"./{values[other]}"
    elif by == "absolute name":
        values[written] = str(target)
    elif by == "symbolic link":
        link = "link.jsonl" if target.suffix == ".jsonl" else "link.parquet"
        (tmp_path / link).symlink_to(target)
        values[written] = link
    else:
        os.link(target, tmp_path / "link.parquet")
        values[written] = "link.parquet"
    if written == "--output" and command == "run":
        values["--overwrite"] = "--no-progress"  # the second stands in the value's place
    check_refused(tmp_path, reached, capsys, command_line(command, values))


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("--summary-json", "out/s.json", "lies in output out"),
        ("--summary-json", "out/deeper/s.json", "lies in output out"),
        ("--summary-json", "out.vlmbatch/run.json", "lies in the work folder of output out"),
        ("--summary-json", "model/config.json", "whose files are the model's"),
        ("--summary-json", "model/new.json", "whose files are the model's"),
        ("--summary-json", "other.parquet.vlmbatch/s.json", "which lets a run be resumed"),
        ("--chat-template", "out/t.jinja", "lies in output out"),
        ("--config", "out.vlmbatch/c.toml", "lies in the work folder of output out"),
        ("MANIFEST", "out/part-000000.parquet", "the manifest itself lies in output out"),
    ],
)
def test_nothing_may_lie_in_a_folder_of_ours(
    tmp_path: Path,
    reached: list[str],
    capsys: pytest.CaptureFixture[str],
    option: str,
    place: str,
    message: str,
) -> None:
    values = set_up(tmp_path, "run") | {"--output": "out/"}
    for folder in ("out/deeper", "out.vlmbatch", "other.parquet.vlmbatch"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "other.parquet.vlmbatch/lock").write_text("{}")
    if option != "--summary-json":
        (tmp_path / place).write_text("")
    values[option] = place
    assert message in check_refused(tmp_path, reached, capsys, command_line("run", values))


@pytest.mark.parametrize(
    ("summary", "other"),
    [
        ("results.jsonl", "output results.jsonl"),
        ("results.errors.jsonl", "the file of errors of output results.jsonl"),
        ("results.jsonl.vlmbatch", "the work folder of output results.jsonl"),
        (".results.jsonl.vlmbatch.tmp", "the temporary file of output results.jsonl"),
        (".results.errors.jsonl.vlmbatch.tmp", "the temporary file of output results.jsonl"),
        ("link/results.jsonl", "output results.jsonl"),
    ],
)
def test_all_that_a_batch_run_writes_counts(
    tmp_path: Path,
    reached: list[str],
    capsys: pytest.CaptureFixture[str],
    summary: str,
    other: str,
) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    (tmp_path / "link").symlink_to(".")
    arguments = ["run", "m.jsonl", "-m", "x", "-o", "results.jsonl", "--summary-json", summary]
    assert f"is {other}: choose another name" in check_refused(tmp_path, reached, capsys, arguments)


def test_a_file_that_a_standard_stream_goes_to(
    tmp_path: Path, reached: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    log.write_text("what was logged before")
    kept = os.dup(2)
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)
        try:
            status = call(["run", "-", "-m", "x", "--summary-json", "log.txt"])
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    assert (status, reached) == (2, [])
    assert log.read_text().startswith("what was logged before")


def test_devices_replace_nothing(tmp_path: Path, reached: list[str]) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    arguments = ["validate", "m.jsonl", "-m", "x", "--errors", "/dev/null"]
    call([*arguments, "--summary-json", "/dev/null"])
    assert reached == ["validate"]


@pytest.mark.parametrize(
    "written",
    ["answers.parquet", "answers.jsonl", "x.jsonl/", ".", "deep/", "k=v/", "k=v/answers.parquet"],
)
def test_an_output_may_not_become_part_of_the_manifest(
    tmp_path: Path, reached: list[str], capsys: pytest.CaptureFixture[str], written: str
) -> None:
    folder = tmp_path / "rows"
    (folder / "deep").mkdir(parents=True)
    (folder / "k=v").mkdir()
    (folder / "m.jsonl").write_text("{}\n")
    call(["run", "rows", "-m", "x", "-o", f"rows/{written}"])
    message = capsys.readouterr().err
    if written in ("deep/", "x.jsonl/"):  # folders in it are not read
        assert reached == ["run"]
    else:
        assert not reached
        assert "choose another" in message or "give the folder's name" in message


@pytest.mark.parametrize("option", ["--errors", "--summary-json"])
def test_a_report_may_not_become_part_of_the_manifest(
    tmp_path: Path, reached: list[str], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/m.jsonl").write_text("{}\n")
    arguments = ["validate", "rows", "-m", "x", option, "rows/new.jsonl"]
    message = check_refused(tmp_path, reached, capsys, arguments)
    assert "the next run would take it for a part of the manifest" in message


def test_an_output_is_no_stream(
    tmp_path: Path, reached: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "m.jsonl").write_text("{}\n")
    for output in (
        "pipe.parquet",
        "/dev/stdout",
        "/dev/null",
        "/dev/fd/1",
        "/proc/self/fd/1",
        "/proc/o.parquet",
    ):
        for more in ([], ["--overwrite"], ["--shard-rows", "5"]):
            assert call(["run", "m.jsonl", "-m", "x", "-o", output, *more]) == 2
            assert "use -o - for JSONL on standard output" in capsys.readouterr().err
    assert not reached
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl", "pipe.parquet"]


def test_what_is_no_path(
    tmp_path: Path, reached: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text('summary_json = "a\\u0000b"\n')
    assert call(["run", "m.jsonl", "-m", "x", "-o", "a.parquet", "--config", "c.toml"]) == 2
    assert "is no path" in capsys.readouterr().err
    assert not reached


def test_the_work_folder_is_where_a_run_has_it() -> None:
    assert work_folder_path(Path("a.parquet")).name == "a.parquet.vlmbatch"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", "/"])
def test_a_name_that_leaves_no_room_is_refused(
    tmp_path: Path, reached: list[str], capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    beside = {"/": 9, ".parquet": 14, ".jsonl": 21}[suffix]
    room = 255 - beside - len(suffix.strip("/"))
    call(["run", "m.jsonl", "-m", "x", "-o", "é" * (room // 2) + "a" * (room % 2) + suffix])
    assert reached == ["run"]
    assert call(["run", "m.jsonl", "-m", "x", "-o", "a" * (room + 1) + suffix]) == 2
    longest = room + len(suffix.strip("/"))
    expected = f"the name has {longest + 1} bytes, and {longest} are possible"
    assert expected in capsys.readouterr().err
