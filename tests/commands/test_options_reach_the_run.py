"""Every option of `run`, set to another value than its default, changes the run as it should."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from in_process import call

from vlmbatch.cli import app
from vlmbatch.config import JobConfig
from vlmbatch.stats import RunStats

RUN = ("run", "m.jsonl", "-m", "x", "-o", "out.parquet", "-q")
# A later --model or --output replaces that of RUN.
REACHES: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--output", "other.parquet"), {"destination.path": Path("other.parquet")}),
    (("--shard-rows", "7"), {"destination.shard_rows": 7}),
    (("--write-text", "texts"), {"text_folder": Path("texts")}),
    (("--overwrite",), {"policy.overwrite": True}),
    (("--retry-failed",), {"policy.retry_failed": True}),
    (("--incremental",), {"policy.incremental": True}),
    (("--grace", "1m"), {"policy.grace_s": 60.0}),
    (("--deadline", "2h"), {"policy.deadline_s": 7200.0}),
    (("--max-error-rate", "5%"), {"policy.max_error_rate": 0.05}),
    (("--limit", "7"), {"manifest.limit": 7}),
    (("--sample", "7"), {"manifest.sample": 7}),
    (("--sample-seed", "7"), {"manifest.sample_seed": 7}),
    (("--prompt", "Who?"), {"manifest.prompt": "Who?"}),
    (("--sidecar", ".txt", "--sidecar", ".json"), {"manifest.sidecars": (".txt", ".json")}),
    (("--image-base", "images"), {"manifest.image_base": "images"}),
    (("--pages", "1-20"), {"manifest.pages": "1-20"}),
    (("--dpi", "300"), {"manifest.dpi": 300}),
    (("--prompt-column", "q"), {"manifest.prompt_column": "q"}),
    (("--image-column", "photo"), {"manifest.image_column": "photo"}),
    (("--id-column", "key"), {"manifest.id_column": "key"}),
    (("--column-prefix", "out_"), {"manifest.column_prefix": "out_"}),
    (("--keep-inputs",), {"manifest.keep_inputs": True}),
    (("--parse-json",), {"manifest.parse_json": True}),
    (("--format", "openai"), {"manifest.format": "openai"}),
    (("--allow-domain", "a.example"), {"session.image_loading.allowed_domains": ("a.example",)}),
    (("--allow-bucket", "s3://b"), {"session.image_loading.allowed_buckets": ("s3://b",)}),
    (("--model", "other"), {"session.model": "other"}),
    (("--revision", "v2"), {"session.revision": "v2"}),
    (("--tokenizer", "other"), {"session.tokenizer": "other"}),
    (("--engine", "transformers"), {"session.engine.engine": "transformers"}),
    (("--dtype", "float16"), {"session.engine.dtype": "float16"}),
    (("--quantize", "fp8"), {"session.engine.quantize": "fp8"}),
    (("--kv-cache-dtype", "fp8"), {"session.engine.kv_cache_dtype": "fp8"}),
    (("--device", "cpu"), {"session.engine.device": "cpu"}),
    (("--gpus", "0,2"), {"session.engine.gpus": "0,2"}),
    (("--replicas", "7"), {"session.engine.replicas": 7}),
    (("--tensor-parallel", "7"), {"session.engine.tensor_parallel": 7}),
    (("--attention-backend", "torch"), {"session.engine.attention_backend": "torch"}),
    (
        ("--image-input-type", "image_features"),
        {"session.image_arguments.image_input_type": "image_features"},
    ),
    (("--image-processor", "other"), {"session.image_arguments.image_processor": "other"}),
    (
        ("--image-processor-revision", "v2"),
        {"session.image_arguments.image_processor_revision": "v2"},
    ),
    (
        ("--disable-image-processor", "--image-input-type", "image_features"),
        {
            "session.image_arguments.disable_image_processor": True,
            "session.image_arguments.image_input_type": "image_features",
        },
    ),
    (("--image-token-id", "7"), {"session.image_arguments.image_token_id": 7}),
    (
        ("--image-input-shape", "1,3,80,90"),
        {"session.image_arguments.image_input_shape": (1, 3, 80, 90)},
    ),
    (("--image-feature-size", "7"), {"session.image_arguments.image_feature_size": 7}),
    (("--strict-image-tokens",), {"session.image_arguments.strict_image_tokens": True}),
    (("--max-pixels", "7"), {"session.image_arguments.resolution.max_pixels": 7}),
    (("--min-pixels", "7"), {"session.image_arguments.resolution.min_pixels": 7}),
    (("--longest-side", "7"), {"session.image_arguments.resolution.longest_side": 7}),
    (("--image-root", "images"), {"session.image_limits.root": Path("images")}),
    (("--max-image-pixels", "7"), {"session.image_limits.max_pixels": 7}),
    (("--image-workers", "0"), {"session.image_loading.workers": 0}),
    (("--image-decoder", "scaled"), {"session.image_loading.decoder": "scaled"}),
    (("--image-decoder", "gpu"), {"session.image_loading.decoder": "gpu"}),
    (("--image-timeout", "7.5"), {"session.image_loading.timeout_s": 7.5}),
    (("--chat",), {"session.prompt.chat": True}),
    (("--chat-template", "t.jinja"), {"session.prompt.chat_template": Path("t.jinja")}),
    (("--prompt-template", "Q: {prompt}"), {"session.prompt.prompt_template": "Q: {prompt}"}),
    (("--system-prompt", "Be brief."), {"session.prompt.system_prompt": "Be brief."}),
    (("--max-tokens", "7"), {"sampling.max_tokens": 7}),
    (("--temperature", "0.5"), {"sampling.temperature": 0.5}),
    (("--top-p", "0.5"), {"sampling.top_p": 0.5}),
    (("--top-k", "7"), {"sampling.top_k": 7}),
    (("--stop", "a", "--stop", "b"), {"sampling.stop": ("a", "b")}),
    (("--stop-token-id", "7"), {"sampling.stop_token_ids": (7,)}),
    (("--seed", "7"), {"sampling.seed": 7}),
    (("--min-p", "0.5"), {"sampling.min_p": 0.5}),
    (("--repetition-penalty", "1.5"), {"sampling.repetition_penalty": 1.5}),
    (("--presence-penalty", "-0.5"), {"sampling.presence_penalty": -0.5}),
    (("--frequency-penalty", "0.5"), {"sampling.frequency_penalty": 0.5}),
    (("--no-repeat-ngram-size", "7"), {"sampling.no_repeat_ngram_size": 7}),
    (("--choices", "a, b"), {"sampling.choices": ("a", "b")}),
    (("--choices", "a, b", "--choices", "c"), {"sampling.choices": ("a, b", "c")}),
    (("--json-schema", '{"type":"object"}'), {"sampling.json_schema": '{"type": "object"}'}),
    (("--regex", "a+"), {"sampling.regex": "a+"}),
    (("--choices", '["a, b","c"]'), {"sampling.choices": ("a, b", "c")}),
    (("--choices", "[a], [b]"), {"sampling.choices": ("[a]", "[b]")}),
    (("--min-tokens", "7"), {"sampling.min_tokens": 7}),
    (("--n", "7", "--temperature", "0.5"), {"sampling.n": 7, "sampling.temperature": 0.5}),
    (("--best-of-retries", "7"), {"sampling.best_of_retries": 7}),
    (("--logprobs", "0"), {"sampling.logprobs": 0}),
    (("--ignore-eos",), {"sampling.ignore_eos": True}),
    (("--max-num-seqs", "7"), {"session.engine.max_num_seqs": 7}),
    (("--max-batched-tokens", "7"), {"session.engine.max_batched_tokens": 7}),
    (("--kv-cache-tokens", "7"), {"session.engine.kv_cache_tokens": 7}),
    (("--max-model-len", "7"), {"session.engine.max_model_len": 7}),
    (("--no-prefix-caching",), {"session.engine.enable_prefix_caching": False}),
    (("--host-memory", "4GiB"), {"session.host_memory": 4 * 2**30}),
]
# What is printed, and the file of options; parts need a folder: test_array_task, test_ray_options.
# What is for outputs with a URL: tests/remote_outputs.
REACH_NO_RUN = {
    *("--quiet", "--verbose", "--no-progress", "--log-format", "--summary-json", "--exit-zero"),
    *("--config", "--help", "--shard", "--ray", "--work-dir"),
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[JobConfig]]:
    """The configurations that reach the job."""
    configs: list[JobConfig] = []

    def job(config: JobConfig, stats: RunStats) -> None:
        configs.append(config)

    module = ModuleType("vlmbatch.jobs.run")
    module.__dict__["run"] = job
    monkeypatch.setitem(sys.modules, "vlmbatch.jobs.run", module)
    monkeypatch.chdir(tmp_path)
    yield configs


def fields(value: object, prefix: str = "") -> dict[str, Any]:
    """Every field of a configuration and of those within it, by dotted name."""
    if not dataclasses.is_dataclass(value):
        return {prefix: value}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        name = f"{prefix}.{field.name}" if prefix else field.name
        found |= fields(getattr(value, field.name), name)
    return found


@pytest.mark.parametrize(("arguments", "expected"), REACHES, ids=lambda value: "".join(value)[:30])
def test_an_option_changes_its_own_field(
    seen: list[JobConfig], arguments: tuple[str, ...], expected: dict[str, Any]
) -> None:
    assert call(RUN) == 0
    assert call([*RUN, *arguments]) == 0
    before, after = map(fields, seen)
    assert {
        name: value for name, value in after.items() if value != before.get(name, ...)
    } == expected


def test_every_option_is_in_the_table() -> None:
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = {
        next(name for name in parameter.opts if name.startswith("--"))
        for parameter in command.params
        if parameter.name != "manifest"
    }
    assert options - REACH_NO_RUN == {arguments[0] for arguments, _ in REACHES}
