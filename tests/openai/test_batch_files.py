"""OpenAI batch files: lines to rows, results to lines and back."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from failing_files import FaultyFiles
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ErrorCode, ManifestError, OutputError, RequestError, UsageError
from vlmbatch.images.urls import AllowedDomains
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.output.finished import finished_counts, finished_results
from vlmbatch.output.openai_lines import BatchLines, errors_path, line_head, parse_line
from vlmbatch.output.openai_writer import BatchResultWriter
from vlmbatch.output.work_folder import read_commit
from vlmbatch.types import ErrorExample, ImageRef, Result, Row

RUN_ID = "0f" * 16
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
TEXT = {"prompt": "Once upon a time"}
LINES = BatchLines(RUN_ID, 1_700_000_000, "tiny")


def request(custom_id: Any, body: Any, url: Any = CHAT, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **fields}


def asking(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(content)}], **fields}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def opened(path: Path, *lines: Any, **config: Any) -> Manifest:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_manifest(
        ManifestConfig(str(path), **config),
        SamplingParams(max_tokens=9),
        domains=AllowedDomains.of(["images.example.org"]),
        model="models/tiny",
    )


def rows(path: Path, *lines: Any, **config: Any) -> list[Row]:
    manifest = opened(path, *lines, **config)
    assert manifest.format == "openai"
    manifest.scan()
    return list(manifest.rows())


def test_rows(tmp_path):
    manifest = opened(
        tmp_path / "requests.jsonl",
        request(
            "a",
            asking(
                image("data:;base64,YWI="),
                {"type": "text", "text": "What?"},
                image("dir/b.png"),
                image("https://images.example.org/c.png"),
            ),
        ),
        request(
            "b",
            {**TEXT, "max_tokens": 3, "seed": 4, "images": ["data:;base64,YWI=", "d.png"]},
            COMPLETION,
            note="kept",
        ),
    )
    info = manifest.scan()
    assert (info.num_rows, info.extra_schema.names) == (2, ["url", "note"])
    chat, text = manifest.rows()
    assert chat.error is None and text.error is None
    part = {"type": "image"}
    content = [part, {"type": "text", "text": "What?"}, part, part]
    assert chat.messages == [{"role": "user", "content": content}]
    data, file, url = chat.images
    assert data.data == b"ab"
    assert file == ImageRef(str(tmp_path / "dir/b.png"))
    assert url == ImageRef(url="https://images.example.org/c.png")
    assert (chat.id, chat.prompt, chat.sampling.max_tokens) == ("a", None, 9)
    assert chat.extra == {"url": CHAT}
    assert (text.id, text.prompt, text.messages) == ("b", TEXT["prompt"], None)
    assert (text.sampling.max_tokens, text.sampling.seed) == (3, 4)
    assert text.images[0].data == b"ab"
    assert text.images[1:] == (ImageRef(str(tmp_path / "d.png")),)
    assert text.extra == {"url": COMPLETION, "note": "kept"}


def test_requests_about_one_image_are_known_before_they_are_read(tmp_path):
    lines: list[Any] = [asking(image(url)) for url in ("a.png", "data:;base64,YWI=", "a.png")]
    lines += [asking("text"), {"messages": [{"content": image("a.png")}]}, [], asking(image(3))]
    lines += [{**TEXT, "images": images} for images in (["a.png"], [], [["b.png"]])]
    path = tmp_path / "requests.jsonl"
    manifest = opened(path, *(request(str(n), body) for n, body in enumerate(lines)))
    manifest.scan()
    assert manifest.last_image_uses.tolist() == [7, 1, 7, 3, 4, 5, 6, 7, 8, 9]


def test_rows_without_a_seed_are_sampled_differently(tmp_path):
    lines = [request(name, TEXT, COMPLETION) for name in "ab"]
    first, second = rows(tmp_path / "requests.jsonl", *lines)
    assert first.sampling.seed != second.sampling.seed


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (request("x", {"messages": []}), ErrorCode.REQUEST_INVALID, "'messages' is empty"),
        (request("x", "text"), ErrorCode.REQUEST_INVALID, "body must be a JSON object"),
        (request("x", asking("a")), ErrorCode.REQUEST_INVALID, "messages[0].content[0]"),
        (request("x", {**TEXT, "stream": True}, COMPLETION), ErrorCode.REQUEST_INVALID, "stream"),
        (request("x", {"input": "a"}, "/v1/embeddings"), ErrorCode.REQUEST_INVALID, "embeddings"),
        (request("x", TEXT, 3), ErrorCode.REQUEST_INVALID, "'url'"),
        (request("x", TEXT, COMPLETION, method="GET"), ErrorCode.REQUEST_INVALID, '"GET"'),
        (request(None, TEXT, COMPLETION), ErrorCode.REQUEST_INVALID, "'custom_id' is"),
        (request([1], TEXT, COMPLETION), ErrorCode.MANIFEST_LINE_INVALID, "id must be"),
        (
            request("x", asking(image("file:///a.png"))),
            ErrorCode.IMAGE_FORBIDDEN,
            "file: URL",
        ),
        (
            request("x", asking(image("https://evil.example/a.png"))),
            ErrorCode.IMAGE_FORBIDDEN,
            "evil.example",
        ),
    ],
)
def test_rows_that_cannot_be_answered(tmp_path, line, code, message):
    row = rows(tmp_path / "requests.jsonl", line)[0]
    assert row.error is not None
    assert row.error.code is code
    assert message in row.error.message
    assert row.extra == {"url": line["url"]}


def test_a_line_that_is_no_request(tmp_path):
    path = tmp_path / "requests.jsonl"
    manifest = opened(path, request("a", TEXT, COMPLETION))
    with path.open("a") as file:
        file.write("{\n")
    manifest.scan()
    [_, bad] = manifest.rows()
    assert bad.error.code is ErrorCode.MANIFEST_LINE_INVALID
    assert f"{path}:2" in bad.error.message
    assert bad.id == "#1"


def test_two_requests_of_one_custom_id_are_refused(tmp_path):
    lines = [request("a", TEXT, COMPLETION) for _ in range(2)]
    with pytest.raises(ManifestError, match=r'duplicate id "a".*jsonl:1.*jsonl:2'):
        rows(tmp_path / "requests.jsonl", *lines)


def test_the_format_is_found_by_the_first_line(tmp_path):
    own = {"prompt": "a", "custom_id": "b"}
    assert opened(tmp_path / "a.jsonl", own, request("a", TEXT)).format == "manifest"
    assert opened(tmp_path / "a.jsonl", request("a", TEXT), own).format == "openai"
    assert opened(tmp_path / "a.jsonl").format == "manifest"
    assert opened(tmp_path / "a.jsonl", {"custom_id": "b"}, format="openai").format == "openai"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(b"\n"))
    line = json.dumps(request("a", TEXT, COMPLETION)).encode()
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(line))
    assert open_manifest(ManifestConfig(str(folder)), SamplingParams()).format == "openai"


@pytest.mark.parametrize(
    ("line", "given", "says", "other"),
    [
        ({"prompt": "a"}, "openai", '"prompt" and no "custom_id" with a "body"', "manifest"),
        ({"id": "a", "image": "a.png"}, "openai", "it is a row of a manifest", "manifest"),
        (request("a", TEXT), "manifest", "it is a request of an OpenAI batch file", "openai"),
    ],
)
def test_a_format_that_is_plainly_another(tmp_path, line, given, says, other):
    """The message says which, and either way that it names helps."""
    path = tmp_path / "a.jsonl"
    with pytest.raises(ManifestError) as caught:
        opened(path, line, format=given)
    message = str(caught.value)
    assert message.startswith(f"{path}:1 ") and says in message
    assert message.endswith(f"Leave --format out, or give --format {other}")
    assert opened(path, line).format == opened(path, line, format=other).format == other


def test_columns_of_ones_own_may_be_called_as_those_of_requests(tmp_path):
    line = request("a", TEXT)
    for options in ({"prompt": "Why?"}, {"prompt_column": "url"}):
        manifest = opened(tmp_path / "a.jsonl", line, format="manifest", **options)
        assert manifest.format == "manifest"


def test_a_row_among_requests(tmp_path):
    _, row = rows(tmp_path / "a.jsonl", request("a", TEXT), {"messages": []})
    assert isinstance(row.error, RequestError) and row.error.param == "custom_id"
    assert "there is 'messages': this is a row of a manifest" in row.error.message


def test_a_row_among_requests_whose_id_would_be_a_column(tmp_path):
    lines = request("a", TEXT, COMPLETION), {"id": "b", "prompt": "Why?"}
    says = r'jsonl:2: "id" is no field of a request.*keep such rows in a file of their own.*prefix'
    with pytest.raises(ManifestError, match=says):
        rows(tmp_path / "a.jsonl", *lines)
    _, row = rows(tmp_path / "a.jsonl", *lines, column_prefix="vlmbatch_")
    assert isinstance(row.error, RequestError) and row.extra == {"id": "b", "prompt": "Why?"}


def test_parquet_is_no_batch_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    config = ManifestConfig(str(tmp_path / "a.parquet"), format="openai")
    with pytest.raises(ManifestError, match="is JSONL"):
        open_manifest(config, SamplingParams())


@pytest.mark.parametrize(
    ("line", "param", "code"),
    [
        (request("x", {**TEXT, "best_of": 2}, COMPLETION), "best_of", "unsupported_parameter"),
        (
            request("x", {**TEXT, "n": 2, "logprobs": 1}, COMPLETION),
            "logprobs",
            "unsupported_parameter",
        ),
        (request("x", {**TEXT, "echo": True}, COMPLETION), "echo", "unsupported_parameter"),
        (request("x", {"prompt": ["a", [1]]}, COMPLETION), "prompt", "unsupported_parameter"),
        (request("x", {**TEXT, "tempo": 2}, COMPLETION), "tempo", "unknown_parameter"),
        (request("x", {**TEXT, "top_p": 2}, COMPLETION), "top_p", "invalid_value"),
        (request("x", {}, COMPLETION), "prompt", "missing_required_parameter"),
        (request("x", asking(image("ftp://a/b"))), "messages[0].content[0]", "image_forbidden"),
        (request("x", {**TEXT, "stream": True}, COMPLETION), "stream", "unsupported_parameter"),
        (request("x", TEXT, "/v1/embeddings"), "url", "invalid_value"),
        (request(None, TEXT, COMPLETION), "custom_id", "missing_required_parameter"),
    ],
)
def test_errors_name_the_field_as_the_servers_do(tmp_path, line, param, code):
    """Also where the row is known from a journal, which does not hold them."""
    [row] = rows(tmp_path / "requests.jsonl", line)
    result = Result.from_error(row, row.error)
    journaled = Result(
        row.index, row.id, error_code=result.error_code, error_message=result.error_message
    )
    for each in (result, journaled.of_row(row, row.error)):
        error = LINES.line(each)["response"]["body"]["error"]
        assert error["param"].startswith(param)
        assert error["code"] == code


def test_answers_name_the_model_and_not_where_it_lies(tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names = [str(folder), f"{folder}/", "../tiny", ".", "org/tiny", "tiny"]
    models = [BatchLines(RUN_ID, 0, name).model for name in names]
    assert models == ["tiny"] * 4 + ["org/tiny", "tiny"]
    assert LINES.line(answer(0))["response"]["body"]["model"] == "tiny"


def test_another_model_is_told_of_once(tmp_path, caplog):
    lines = [request(name, {**TEXT, "model": name}, COMPLETION) for name in "ab"]
    known = [request(name, {**TEXT, "model": name}, COMPLETION) for name in ("tiny", "models/tiny")]
    with caplog.at_level("WARNING", logger="vlmbatch"):
        rows(tmp_path / "requests.jsonl", *known)
        assert caplog.messages == []
        rows(tmp_path / "requests.jsonl", *lines)
    assert len(caplog.messages) == 1
    assert 'jsonl:1 asks for the model "a"' in caplog.messages[0]
    assert "models/tiny" in caplog.messages[0]


ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
answers = st.builds(
    Result,
    index=st.integers(0, 10**12),
    id=ids,
    text=ids,
    finish_reason=st.sampled_from(["stop", "length"]),
    prompt_tokens=st.integers(0, 2**31),
    image_tokens=st.integers(0, 2**31),
    completion_tokens=st.integers(0, 2**31),
    extra=st.sampled_from([{"url": CHAT}, {"url": COMPLETION}]),
)
failures = st.builds(
    Result,
    index=st.integers(0, 10**12),
    id=ids,
    error_code=st.sampled_from(ErrorCode),
    error_message=ids,
    error_param=st.none() | ids,
    extra=st.sampled_from([{"url": CHAT}, {}]),
) | st.builds(
    Result,
    index=st.integers(0, 10**12),
    id=ids,
    error_code=st.just(ErrorCode.REQUEST_INVALID),
    error_message=ids,
    error_param=st.none() | ids,
    error_api_code=st.sampled_from(["unknown_parameter", "invalid_value"]),
)


@given(answers | failures)
def test_a_line_is_read_back_as_the_result_it_was_made_of(result: Result) -> None:
    raw = json.dumps(LINES.line(result), ensure_ascii=False).encode()
    assert line_head(raw) == (RUN_ID, result.index)
    back = parse_line(raw)
    assert back.extra == {}
    no_request = result.error_code is ErrorCode.MANIFEST_LINE_INVALID  # has no field in error
    for name in Result.__slots__:
        if name != "extra" and not (no_request and name == "error_param"):
            assert getattr(back, name) == getattr(result, name)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_result_or_none(raw: bytes, headed: bool) -> None:
    if headed:
        raw = b'{"id": "batch_req_%s_1", ' % RUN_ID.encode() + raw
    with contextlib.suppress(ValueError):
        assert isinstance(parse_line(raw), Result)


def answer(index: int) -> Result:
    return Result(index, f"id-{index}", f"text {index}", "stop", 5, 0, 2, extra={"url": CHAT})


def failure(index: int) -> Result:
    return Result(
        index, f"id-{index}", error_code=ErrorCode.PROMPT_TOO_LONG, error_message=f"{index} tokens"
    )


def written(path: Path, *results: Result) -> Path:
    writer = BatchResultWriter(path, LINES, path.with_name("temporary"))
    for result in results:
        writer.write(result)
    assert not path.exists() or read_commit(path) is None
    writer.close()
    return path


def test_answers_and_errors_in_two_files(tmp_path):
    path = written(tmp_path / "out.jsonl", answer(0), failure(1), answer(2), failure(3))
    answered = [json.loads(line) for line in path.read_text().splitlines()]
    failed = [json.loads(line) for line in errors_path(path).read_text().splitlines()]
    assert [line["custom_id"] for line in answered] == ["id-0", "id-2"]
    assert [line["custom_id"] for line in failed] == ["id-1", "id-3"]
    assert failed[0]["error"] is None
    assert failed[0]["response"]["status_code"] == 400
    assert failed[0]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert {entry.name for entry in tmp_path.iterdir()} == {"out.jsonl", "out.errors.jsonl"}
    assert read_commit(path).run_id == RUN_ID
    with finished_results(path, 4) as results:
        assert results.answered().tolist() == [True, False, True, False]
        assert results.result(2).text == "text 2"
        assert results.result(0).id == "id-0"
    counts = finished_counts(path)
    assert (counts.num_rows, counts.errors) == (4, {"prompt_too_long": 2})
    assert counts.error_examples == {"prompt_too_long": ErrorExample(1, "id-1", "1 tokens")}


def test_errors_of_an_earlier_run_go_when_there_are_none(tmp_path):
    path = tmp_path / "out.jsonl"
    errors_path(path).write_text("old\n")
    written(path, answer(0))
    assert {entry.name for entry in tmp_path.iterdir()} == {"out.jsonl"}
    assert finished_counts(path).num_rows == 1


def test_a_writer_that_gives_up_leaves_what_there_was(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    errors_path(path).write_text("old\n")
    writer = BatchResultWriter(path, LINES, tmp_path / "temporary")
    writer.write(answer(0))
    writer.write(failure(1))
    writer.abort()
    assert {entry.name for entry in tmp_path.iterdir()} == {"out.jsonl", "out.errors.jsonl"}
    assert path.read_text() == errors_path(path).read_text() == "old\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:1],
        lambda lines: lines[::-1],
        lambda lines: [lines[0], lines[0]],
        lambda lines: [lines[0], "{}"],
        lambda lines: [lines[0], lines[1].replace(RUN_ID, "0e" * 16)],
        lambda lines: [lines[0], lines[1].replace(f"{RUN_ID}_2", f"{RUN_ID}_7")],
    ],
)
def test_files_that_something_else_has_changed(tmp_path, change):
    path = written(tmp_path / "out.jsonl", answer(0), failure(1), answer(2))
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in change(lines)))
    with pytest.raises(UsageError, match="changed by something else"):
        finished_results(path, 3)


def test_files_that_are_gone(tmp_path):
    path = written(tmp_path / "out.jsonl", answer(0), failure(1))
    errors_path(path).write_text("no line of ours\n")
    with pytest.raises(UsageError, match="changed by something else"):
        finished_counts(path)
    path.unlink()
    for read in (lambda: finished_results(path, 2), lambda: finished_counts(path)):
        with pytest.raises(OutputError, match="cannot be read"):
            read()


def test_every_failing_call_is_an_output_error_and_leaves_no_half_file(tmp_path):
    """The n-th system call fails, for every n until none does."""
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "out.jsonl"
        try:
            writer = BatchResultWriter(
                path, LINES, folder / "temporary", files=FaultyFiles(number, errno.ENOSPC)
            )
        except OutputError:
            assert list(folder.iterdir()) == []
            continue
        try:
            writer.write(answer(0))
            writer.write(failure(1))
            writer.close()
        except OutputError:
            writer.abort()
        else:
            assert number > 8
            return
        for file in folder.glob("out*"):
            for line in file.read_bytes().splitlines():
                parse_line(line)
    raise AssertionError("a call fails for ever")
