"""Which settings make a run another run: those that decide answers, and no others.

Every field of the configuration stands in one of two tables here, and so must a new one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from model_folder import IMAGE_SIZE, SPECIAL_TOKENS, make_model_folder
from qwen_vl_checkpoints import make_checkpoint

from vlmbatch.config import (
    FileDestination,
    JobConfig,
    ManifestConfig,
    SessionConfig,
)
from vlmbatch.jobs.fingerprint import checkpoint_digest, fingerprint, run_settings
from vlmbatch.session.open import open_job

MEBIBYTE = 2**20
TEMPLATE = "{% for message in messages %}Q: {{ message.content }} {% endfor %}A:"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose images vary in size."""
    folder = tmp_path_factory.mktemp("qwen")
    make_checkpoint("qwen3_vl", folder)
    return folder


@pytest.fixture
def job(tmp_path: Path, qwen: Path) -> JobConfig:
    """A run on a manifest with an image; beside it folders and files that are others."""
    (tmp_path / "qwen").symlink_to(qwen)
    for name in ("model", "other"):
        folder = make_model_folder(tmp_path / name)
        (folder / "generation_config.json").write_text("{}")
        (folder / "special_tokens_map.json").write_text("{}")
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "model.safetensors").write_bytes(bytes(1024))
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        path = tmp_path / "other" / name
        values = json.loads(path.read_text())
        values |= {"bos_token": "</s>", "image_mean": [0.4, 0.4, 0.4]}
        path.write_text(json.dumps(values))
    (tmp_path / "images").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").touch()
    (tmp_path / "own.jinja").write_text(f"{TEMPLATE} ")
    row = {"prompt": "<image>x", "image": "a.png", "question": "y", "picture": "b.png"}
    lines = [json.dumps({**row, "key": number}) for number in range(3)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    (tmp_path / "either.jsonl").write_text('{"custom_id": "a"}\n{"custom_id": "b"}\n')
    (tmp_path / "other.jsonl").write_text('{"prompt": "<image>y", "image": "a.png"}\n' * 3)
    return JobConfig(
        SessionConfig(str(tmp_path / "model")),
        ManifestConfig(str(tmp_path / "m.jsonl")),
        FileDestination(Path("o.parquet")),
    )


def settings_of(config: JobConfig) -> dict[str, Any]:
    inputs = open_job(config)
    return run_settings(config, inputs, inputs.manifest.scan())


def of(config: JobConfig) -> str:
    return fingerprint(settings_of(config))


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields, of the dataclasses in it too."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def changed(config: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return replace(
        config, **{first: changed(getattr(config, first), rest, value) if rest else value}
    )


class Change(NamedTuple):
    """Another value of a field, and of fields that it needs beside it."""

    value: Any
    reason: str = ""  # why it may change within a run
    beside: Mapping[str, Any] = {}


_VARYING = {"session.model": "qwen"}

DECIDES = {
    "session.model": Change("other"),
    "session.tokenizer": Change("other"),
    "manifest.source": Change("other.jsonl"),
    "manifest.prompt": Change("<image>What?"),
    "manifest.sidecars": Change(
        (".txt",), beside={"manifest.source": "photos", "manifest.prompt": "<image>What?"}
    ),
    "manifest.image_base": Change("photos"),
    "manifest.pages": Change(
        "1-20", beside={"manifest.source": "photos", "manifest.prompt": "<image>What?"}
    ),
    "manifest.dpi": Change(300),
    "manifest.prompt_column": Change("question"),
    "manifest.image_column": Change("picture"),
    "manifest.id_column": Change("key"),
    "manifest.column_prefix": Change("answer_"),
    "manifest.keep_inputs": Change(True),
    "manifest.parse_json": Change(
        True, beside={"sampling.json_schema": '{"properties": {"a": {}}}'}
    ),
    "manifest.limit": Change(2),
    "manifest.sample": Change(2),
    "manifest.sample_seed": Change(2, beside={"manifest.sample": 2}),
    "manifest.format": Change("openai", beside={"manifest.source": "either.jsonl"}),
    "sampling.max_tokens": Change(9),
    "sampling.temperature": Change(0.5),
    "sampling.top_p": Change(0.5),
    "sampling.top_k": Change(9),
    "sampling.seed": Change(9),
    "sampling.stop": Change(("x",)),
    "sampling.stop_token_ids": Change((9,)),
    "sampling.ignore_eos": Change(True),
    "sampling.min_p": Change(0.1),
    "sampling.repetition_penalty": Change(1.1),
    "sampling.presence_penalty": Change(0.5),
    "sampling.frequency_penalty": Change(0.5),
    "sampling.no_repeat_ngram_size": Change(3),
    "sampling.logprobs": Change(0),
    "sampling.choices": Change(("a", "b")),
    "sampling.json_schema": Change('{"type": "object"}'),
    "sampling.regex": Change("a+"),
    "sampling.min_tokens": Change(1),
    "sampling.n": Change(2),
    "sampling.best_of_retries": Change(1),
    "session.engine.engine": Change("transformers"),
    "session.engine.dtype": Change("float16"),
    "session.engine.quantize": Change("fp8"),
    "session.engine.kv_cache_dtype": Change("fp8"),
    "session.engine.max_model_len": Change(99),
    "session.engine.random_weights": Change(True),
    "session.image_arguments.image_input_type": Change("image_features"),
    "session.image_arguments.strict_image_tokens": Change(True),
    "session.image_arguments.image_processor": Change("other"),
    "session.image_arguments.resolution.max_pixels": Change(9999, beside=_VARYING),
    "session.image_arguments.resolution.min_pixels": Change(9999, beside=_VARYING),
    "session.image_arguments.resolution.longest_side": Change(99, beside=_VARYING),
    "session.image_limits.max_pixels": Change(99),
    "session.image_limits.max_bytes": Change(99),
    "session.image_limits.root": Change(Path("images")),
    "session.image_loading.decoder": Change("scaled"),
    "session.prompt.chat": Change(True, beside={"session.prompt.chat_template": Path("own.jinja")}),
    "session.prompt.chat_template": Change(Path("own.jinja")),
    "session.prompt.prompt_template": Change("{prompt}?"),
    "session.prompt.system_prompt": Change("Be brief.", beside={"session.prompt.chat": True}),
}

_MUST_AGREE = "a value that contradicts the model's, which is of the fingerprint, is refused"
_BY_CONTENT = "it names files, and what these hold is of the fingerprint"
_ROUNDING = "it changes how steps are put together: answers but for rounding are the same"
_PACE = "it changes how fast rows are answered, not what the answers are"
_WHICH_ROWS = "it changes which rows are answered now, not what an answer is"
_ERRORS = "it decides whether a row is an error, which --retry-failed is for"

DECIDES_NOTHING = {
    "session.revision": Change("v2", _BY_CONTENT),
    "session.image_arguments.image_processor_revision": Change("v2", _BY_CONTENT),
    "session.image_arguments.image_token_id": Change(SPECIAL_TOKENS.index("<image>"), _MUST_AGREE),
    "session.image_arguments.image_input_shape": Change(
        (1, 3, IMAGE_SIZE, IMAGE_SIZE), _MUST_AGREE
    ),
    "session.image_arguments.image_feature_size": Change(4, _MUST_AGREE),
    "session.image_arguments.disable_image_processor": Change(
        True,
        "features need no image processor, and with images it is refused",
        {"session.image_arguments.image_input_type": "image_features"},
    ),
    "session.engine.device": Change("cpu", _ROUNDING),
    "session.engine.gpus": Change("2", _ROUNDING),
    "session.engine.replicas": Change(2, _ROUNDING),
    "session.engine.tensor_parallel": Change(2, _ROUNDING, beside=_VARYING),
    "session.engine.attention_backend": Change("torch", _ROUNDING),
    "session.engine.max_num_seqs": Change(9, _ROUNDING),
    "session.engine.max_batched_tokens": Change(99, _ROUNDING),
    "session.engine.kv_cache_tokens": Change(999, _ROUNDING),
    "session.engine.enable_prefix_caching": Change(False, _ROUNDING),
    "session.engine.cuda_graphs": Change(False, _ROUNDING),
    "session.engine.cpu_threads": Change(1, _ROUNDING),
    "manifest.max_line_bytes": Change(999, _ERRORS),
    "session.image_loading.allowed_domains": Change(("example.org",), _ERRORS),
    "session.image_loading.allowed_buckets": Change(("s3://photos",), _ERRORS),
    "session.image_loading.timeout_s": Change(9.0, _ERRORS),
    "policy.max_error_rate": Change(0.5, _WHICH_ROWS),
    "policy.retry_failed": Change(True, _WHICH_ROWS),
    "policy.incremental": Change(True, _WHICH_ROWS),
    "policy.overwrite": Change(True, "it begins another run whatever the fingerprint is"),
    "destination.path": Change(Path("other.parquet"), "the work folder is the output's own"),
    "policy.grace_s": Change(9.0, _WHICH_ROWS),
    "policy.deadline_s": Change(9.0, _WHICH_ROWS),
    "session.image_loading.workers": Change(9, _PACE),
    "text_folder": Change(Path("texts"), "it decides where the same answers are written too"),
    "output_url": Change("s3://a/out.parquet", "it decides where the same answers are put"),
    "text_url": Change("s3://a/texts", "it decides where the same answers are written too"),
    "queue_rows": Change(9, _PACE),
    "session.host_memory": Change(2**30, _PACE),
}


def test_every_field_decides_answers_or_says_why_not(job: JobConfig) -> None:
    assert sorted([*DECIDES, *DECIDES_NOTHING]) == sorted(leaves(job))
    assert all(change.reason for change in DECIDES_NOTHING.values())


def before_and_after(job: JobConfig, name: str, change: Change) -> tuple[JobConfig, JobConfig]:
    folder = Path(job.manifest.source).parent
    before = job
    for other, value in change.beside.items():
        before = changed(before, other, placed(value, folder))
    return before, changed(before, name, placed(change.value, folder))


_PLACED = ("other", "other.jsonl", "either.jsonl", "qwen", "photos")


def placed(value: Any, folder: Path) -> Any:
    """The files and folders of a table's values lie beside the manifest."""
    if isinstance(value, Path):
        return folder / value
    return str(folder / value) if value in _PLACED else value


@pytest.mark.parametrize("name", DECIDES)
def test_what_decides_answers_makes_another_run(job: JobConfig, name: str) -> None:
    before, after = before_and_after(job, name, DECIDES[name])
    assert of(before) != of(after)


def test_what_nobody_asks_for_of_sampling_is_absent(job: JobConfig) -> None:
    """As in runs of versions that had no such options."""
    first = {"max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids"}
    assert settings_of(job)["sampling"].keys() == first | {"ignore_eos"}


def test_what_nobody_asks_for_of_images_is_absent(job: JobConfig, tmp_path: Path) -> None:
    """As in runs of versions that had no such options."""
    names = {"max_pixels", "min_pixels", "longest_side", "image_decoder"}
    settings = settings_of(changed(job, "session.model", str(tmp_path / "qwen")))
    assert not names & settings.keys()
    assert not names & settings["processor"].keys()


@pytest.mark.parametrize("name", ["max_pixels", "longest_side"])
def test_a_resolution_decides_what_transformers_answers(job: JobConfig, name: str) -> None:
    """No image processor of ours tells of it."""
    before = changed(job, "session.engine.engine", "transformers")
    after = changed(before, f"session.image_arguments.resolution.{name}", 99)
    assert settings_of(after) == settings_of(before) | {name: 99}


@pytest.mark.parametrize("name", DECIDES_NOTHING)
def test_what_does_not_leaves_it_the_same_run(job: JobConfig, name: str) -> None:
    before, after = before_and_after(job, name, DECIDES_NOTHING[name])
    assert before != after and of(before) == of(after)


FILES = {
    "config.json": lambda path: edit_json(path, unknown=1),
    "generation_config.json": lambda path: edit_json(path, eos_token_id=9),
    "tokenizer.json": lambda path: path.write_text(path.read_text() + " "),
    "tokenizer_config.json": lambda path: edit_json(path, bos_token="</s>"),
    "special_tokens_map.json": lambda path: edit_json(path, bos_token="</s>"),
    "preprocessor_config.json": lambda path: edit_json(path, image_mean=[0.4] * 3),
    "chat_template.jinja": lambda path: path.write_text("another"),
    "chat_template.json": lambda path: path.write_text('{"chat_template": "another"}'),
    "model.safetensors": lambda path: path.write_bytes(b"\1" * 1024),
    "more.safetensors": lambda path: path.write_bytes(b"\1"),
}


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", FILES)
def test_another_file_of_the_model_makes_another_run(job: JobConfig, name: str) -> None:
    before = of(job)
    FILES[name](Path(job.session.model) / name)
    assert of(job) != before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("tokenizer_config.json", {"bos_token": "</s>", "eos_token": "<s>"}),
        ("special_tokens_map.json", {"bos_token": "<s>"}),
        ("preprocessor_config.json", {"image_std": [0.9] * 3}),
    ],
)
def test_another_file_of_another_folder_makes_another_run(
    job: JobConfig, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    job = changed(job, "session.tokenizer", str(tmp_path / "other"))
    job = changed(job, "session.image_arguments.image_processor", str(tmp_path / "other"))
    before = of(job)
    edit_json(tmp_path / "other" / name, **change)
    assert of(job) != before


def test_a_template_is_known_by_its_content(job: JobConfig, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "own.jinja", tmp_path / "copy.jinja")
    first, second = (
        changed(job, "session.prompt.chat_template", tmp_path / f"{name}.jinja")
        for name in ("own", "copy")
    )
    assert of(first) == of(second)
    (tmp_path / "copy.jinja").write_text(TEMPLATE.replace("A:", "B:"))
    assert of(first) != of(second)


def test_copies_of_model_and_tokenizer_leave_it_the_same_run(
    job: JobConfig, tmp_path: Path
) -> None:
    shutil.copytree(job.session.model, tmp_path / "copy")
    copy = str(tmp_path / "copy")
    assert of(job) == of(changed(job, "session.model", copy))
    assert of(job) == of(changed(job, "session.tokenizer", copy))


def image_bases(job: JobConfig, tmp_path: Path, line: dict[str, Any]) -> list[str | None]:
    """Of the same manifest in folders a and b; they are one run where the bases are equal."""
    settings = []
    for name in ("a", "b"):
        source = tmp_path / name / "m.jsonl"
        source.parent.mkdir()
        source.write_text(json.dumps(line) + "\n")
        settings.append(settings_of(changed(job, "manifest.source", str(source))))
    first, second = (each["images_from"] for each in settings)
    assert (first == second) == (fingerprint(settings[0]) == fingerprint(settings[1]))
    found = {str(tmp_path / "a"): "a", str(tmp_path / "b"): "b", None: None}
    return [found[first], found[second]]


IMAGES = [
    ("a.png", True),
    ("../a.png", True),
    (["/a.png", "b.png"], True),
    ("/a.png", False),
    (["/a.png", "/b.png"], False),
    ("https://example.org/a.png", False),
    (None, False),
    ([], False),
    (7, False),
]


@pytest.mark.parametrize(
    ("image", "starts_somewhere"),
    [
        *IMAGES,
        ({"bytes": None, "path": "a.png"}, True),
        ({"bytes": None, "path": "/a.png"}, False),
        ({"bytes": "is embedded", "path": "label.png"}, False),
    ],
)
def test_where_relative_image_paths_start(
    job: JobConfig, tmp_path: Path, image: Any, starts_somewhere: bool
) -> None:
    bases = image_bases(job, tmp_path, {"prompt": "x", "image": image})
    assert bases == (["a", "b"] if starts_somewhere else [None, None])


@pytest.mark.parametrize(("image", "starts_somewhere"), IMAGES)
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_where_relative_paths_in_requests_start(
    job: JobConfig, tmp_path: Path, kind: str, image: Any, starts_somewhere: bool
) -> None:
    images = image if isinstance(image, list) else [image]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    body = {
        "chat": {"messages": [{"role": "user", "content": content}]},
        "completion": {"prompt": "x", "images": images},
    }[kind]
    bases = image_bases(job, tmp_path, {"custom_id": "x", "body": body})
    assert bases == (["a", "b"] if starts_somewhere else [None, None])


def test_the_same_folder_by_another_name_leaves_it_the_same_run(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = changed(job, "session.image_limits.root", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    by_link = changed(job, "manifest.source", str(tmp_path / "link/m.jsonl"))
    by_link = changed(by_link, "session.image_limits.root", tmp_path / "link/images/..")
    monkeypatch.chdir(tmp_path)
    relative = changed(job, "manifest.source", "m.jsonl")
    relative = changed(relative, "session.image_limits.root", Path())
    assert of(job) == of(by_link) == of(relative)


@pytest.mark.parametrize(
    "position",
    [0, MEBIBYTE - 1, 2 * MEBIBYTE, 4 * MEBIBYTE, 5 * MEBIBYTE - 1],
    ids="byte {}".format,
)
def test_a_changed_byte_in_weights_of_a_few_megabytes(job: JobConfig, position: int) -> None:
    weights = Path(job.session.model) / "model.safetensors"
    os.truncate(weights, 5 * MEBIBYTE)
    before = checkpoint_digest(weights.parent)
    with weights.open("r+b") as file:
        file.seek(position)
        file.write(b"\1")
    assert weights.stat().st_size == 5 * MEBIBYTE
    assert checkpoint_digest(weights.parent) != before


def test_weights_that_differ_in_the_middle_alone(job: JobConfig) -> None:
    weights = Path(job.session.model) / "model.safetensors"
    os.truncate(weights, 64 * MEBIBYTE)
    before = checkpoint_digest(weights.parent)
    with weights.open("r+b") as file:
        file.seek(20 * MEBIBYTE)
        file.write(b"\1" * (2 * MEBIBYTE))
    assert checkpoint_digest(weights.parent) != before


@pytest.mark.parametrize("name", ["added_tokens.json", "more.jinja", "tokenizer.model"])
def test_a_file_more_or_another_name_changes_the_digest(job: JobConfig, name: str) -> None:
    folder = Path(job.session.model)
    before = checkpoint_digest(folder)
    (folder / name).write_text("{}")
    assert checkpoint_digest(folder) != before
    with_it = checkpoint_digest(folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    assert checkpoint_digest(folder) != with_it


def test_files_that_no_answer_depends_on_leave_the_digest(job: JobConfig) -> None:
    folder = Path(job.session.model)
    before = checkpoint_digest(folder)
    (folder / "README.md").write_text("about the model")
    (folder / "assets").mkdir()
    assert checkpoint_digest(folder) == before
