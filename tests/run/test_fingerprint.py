"""Which settings make a run another run: those that decide answers, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vlmbatch.config import (
    EngineConfig,
    ImageArguments,
    ImageLimits,
    ManifestConfig,
    RunConfig,
    SamplingParams,
)
from vlmbatch.fingerprint import checkpoint_digest, fingerprint, run_settings

CONFIG = RunConfig("x", ManifestConfig("m.jsonl"), "out.parquet")
MEBIBYTE = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(5 * MEBIBYTE))
    return tmp_path


def of(
    folder: Path, config: RunConfig = CONFIG, manifest: str | None = "m" * 64, processor: str = "p"
) -> str:
    return fingerprint(run_settings(config, folder, manifest, processor))


@pytest.mark.parametrize(
    "config",
    [
        *(
            replace(CONFIG, sampling=sampling)
            for sampling in (
                SamplingParams(max_tokens=9),
                SamplingParams(temperature=0.5),
                SamplingParams(top_p=0.5),
                SamplingParams(top_k=9),
                SamplingParams(seed=9),
                SamplingParams(stop=("x",)),
                SamplingParams(stop_token_ids=(9,)),
                SamplingParams(ignore_eos=True),
            )
        ),
        *(
            replace(CONFIG, manifest=replace(CONFIG.manifest, **{name: value}))
            for name, value in (
                ("prompt_column", "other"),
                ("image_column", "other"),
                ("id_column", "other"),
                ("limit", 9),
            )
        ),
        replace(CONFIG, engine=EngineConfig(dtype="float16")),
        replace(CONFIG, engine=EngineConfig(max_model_len=99)),
        replace(CONFIG, image_arguments=ImageArguments("image_features")),
        replace(CONFIG, image_limits=ImageLimits(max_pixels=99)),
        replace(CONFIG, image_limits=ImageLimits(root=Path("/images"))),
    ],
)
def test_what_decides_answers_makes_another_run(folder: Path, config: RunConfig) -> None:
    assert of(folder, config) != of(folder)


@pytest.mark.parametrize(
    "config",
    [
        replace(
            CONFIG,
            engine=EngineConfig(
                max_num_seqs=9,
                max_batched_tokens=99,
                kv_cache_tokens=999,
                enable_prefix_caching=False,
                cpu_threads=1,
            ),
        ),
        replace(CONFIG, output="other.parquet", shard_rows=9),
        replace(CONFIG, deadline_s=9.0, grace_s=9.0, max_error_rate=0.5, retry_failed=True),
        replace(CONFIG, image_workers=9, image_timeout_s=9.0, queue_rows=9),
        replace(CONFIG, manifest=replace(CONFIG.manifest, source="moved.jsonl")),
    ],
)
def test_what_does_not_leaves_it_the_same_run(folder: Path, config: RunConfig) -> None:
    assert of(folder, config) == of(folder)


def test_manifest_and_processor_make_another_run(folder: Path) -> None:
    digests = {
        of(folder),
        of(folder, manifest=None),
        of(folder, manifest="n" * 64),
        of(folder, processor="q"),
    }
    assert len(digests) == 4


def test_another_checkpoint_makes_another_run(folder: Path) -> None:
    before = of(folder)
    (folder / "config.json").write_text('{"rope_theta": 1}')
    assert of(folder) != before


@pytest.mark.parametrize(
    "position",
    [0, MEBIBYTE - 1, 2 * MEBIBYTE, 4 * MEBIBYTE, 5 * MEBIBYTE - 1],
    ids="byte {}".format,
)
def test_a_changed_byte_in_weights_of_a_few_megabytes(folder: Path, position: int) -> None:
    before = checkpoint_digest(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(position)
        file.write(b"\1")
    assert checkpoint_digest(folder) != before


def test_weights_that_differ_in_the_middle_alone(folder: Path) -> None:
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(64 * MEBIBYTE)
    before = checkpoint_digest(folder)
    with weights.open("r+b") as file:
        file.seek(20 * MEBIBYTE)
        file.write(b"\1" * (2 * MEBIBYTE))
    assert checkpoint_digest(folder) != before


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer.model"])
def test_a_file_more_or_another_name_changes_the_digest(folder: Path, name: str) -> None:
    before = checkpoint_digest(folder)
    (folder / name).write_text("{}")
    assert checkpoint_digest(folder) != before
    with_it = checkpoint_digest(folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    assert checkpoint_digest(folder) != with_it


def test_files_that_no_answer_depends_on_leave_the_digest(folder: Path) -> None:
    before = checkpoint_digest(folder)
    (folder / "README.md").write_text("about the model")
    (folder / "assets").mkdir()
    assert checkpoint_digest(folder) == before
