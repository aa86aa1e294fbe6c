"""Whole runs of a family whose images take 1 to 144 tokens, beside a dense model of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from in_process import call
from llm_engine import engine_of
from made_up_case import IMAGES, MAX_TOKENS, Case, make_case, upright_pixels
from made_up_checkpoint import IMAGE_TOKEN_ID, PACKAGE
from PIL import Image

from vlmbatch import LLM, ImageFeatureData, ImagePixelData
from vlmbatch.bench.inputs import write_inputs
from vlmbatch.bench.random_checkpoint import prepare_checkpoint
from vlmbatch.bench.workloads import WORKLOADS
from vlmbatch.config import (
    EngineConfig,
    ImageArguments,
    ManifestConfig,
    PromptConfig,
    SamplingParams,
)
from vlmbatch.costs.model import model_costs
from vlmbatch.engine.engine import Engine
from vlmbatch.errors import ConfigError, ErrorCode
from vlmbatch.jobs.run import run
from vlmbatch.jobs.validate import validate
from vlmbatch.models.family import FAMILIES, load_model_config, load_processor
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.session.load import load_engine
from vlmbatch.session.open import open_model
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

SETTINGS = {
    "default": EngineConfig(),
    "without a prefix cache": EngineConfig(enable_prefix_caching=False),
    "one at a time": EngineConfig(max_num_seqs=1),
    "chunks of 1": EngineConfig(max_batched_tokens=1, enable_prefix_caching=False),
    "chunks of 3": EngineConfig(max_batched_tokens=3, max_num_seqs=2),
    "chunks of 7": EngineConfig(max_batched_tokens=7),
    "chunks of 17": EngineConfig(max_batched_tokens=17),
    "chunks of 33": EngineConfig(max_batched_tokens=33, enable_prefix_caching=False),
    "a pool that runs dry": EngineConfig(kv_cache_tokens=208, max_batched_tokens=64),
    "a dry pool without a prefix cache": EngineConfig(
        kv_cache_tokens=208, max_batched_tokens=50, enable_prefix_caching=False
    ),
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "made_up", PACKAGE)
        yield


@pytest.fixture(scope="module")
def case(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("made-up"))


def held(path: Path) -> Any:
    """An array; of files that say how they are turned, the path."""
    if path.suffix == ".jpg":
        return path
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The tokens of the rows that a run has answered."""
    found: dict[int, list[int]] = {}

    def noted(answer: Answer, tokenizer: Tokenizer) -> Result:
        if answer.error is None and answer.known is None:
            found[answer.row.index] = list(answer.token_ids)
        return to_result(answer, tokenizer)

    monkeypatch.setattr("vlmbatch.stages.sink.to_result", noted)
    return found


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """The engines of runs."""
    loaded: list[Engine] = []

    def noted(*arguments: Any) -> Engine:
        loaded.append(load_engine(*arguments))
        return loaded[-1]

    monkeypatch.setattr("vlmbatch.session.replica.load_engine", noted)
    return loaded


@pytest.mark.parametrize("engine", SETTINGS.values(), ids=SETTINGS)
def test_answers_are_those_of_the_dense_model(
    case: Case,
    engine: EngineConfig,
    tokens: dict[int, list[int]],
    engines: list[Engine],
    tmp_path: Path,
) -> None:
    stats = RunStats()
    run(case.job(tmp_path / "out.parquet", engine=engine), stats)
    assert stats.num_errors == 0, stats.error_examples
    assert [tokens[index] for index in range(len(case.expected))] == case.expected
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["prompt_tokens"] for row in rows] == [len(prompt) for prompt in case.prompts]
    assert [row["image_tokens"] for row in rows] == [
        prompt.count(IMAGE_TOKEN_ID) for prompt in case.prompts
    ]
    if engine.kv_cache_tokens is not None:
        assert engines[0].scheduler.num_preemptions > 0
    if engine.enable_prefix_caching and engine.max_num_seqs == 1:
        assert stats.cached_tokens > 144, "the largest image was shown twice"
    if not engine.enable_prefix_caching:
        assert stats.cached_tokens == 0


def test_images_by_way_of_the_workers(
    case: Case, tokens: dict[int, list[int]], tmp_path: Path
) -> None:
    run(case.job(tmp_path / "out.parquet", image_workers=2), RunStats())
    assert [tokens[index] for index in range(len(case.expected))] == case.expected


@pytest.mark.parametrize("chunk", [7, 4096])
def test_stored_features_in_the_place_of_images(
    case: Case, tokens: dict[int, list[int]], tmp_path: Path, chunk: int
) -> None:
    folder = tmp_path / "features"
    command = ["features", case.manifest, "-m", case.model, "-o", folder, "-q"]
    assert call([*command, "--image-workers", 0]) == 0
    arguments = ImageArguments("image_features", disable_image_processor=True)
    stored = case.job(
        tmp_path / "out.parquet",
        folder / "manifest.jsonl",
        image_arguments=arguments,
        engine=EngineConfig(max_batched_tokens=chunk),
    )
    run(stored, RunStats())
    assert [tokens[index] for index in range(len(case.expected))] == case.expected
    assert {error for _, error in validate(stored.session, stored.manifest, RunStats())} == {None}


def test_features_of_a_wrong_shape_are_errors_of_their_rows(case: Case, tmp_path: Path) -> None:
    shapes = [(2, 3, 96), (6, 96), (21, 1, 96), (2, 3, 95), (0, 3, 96)]
    lines = []
    for index, shape in enumerate(shapes):
        np.save(tmp_path / f"{index}.npy", np.zeros(shape, np.float32))
        lines.append(json.dumps({"prompt": "<image>", "image": f"{index}.npy"}))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    config = case.job(
        tmp_path / "out.parquet",
        tmp_path / "m.jsonl",
        image_arguments=ImageArguments("image_features"),
    )
    run(config, RunStats())
    codes = pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist()
    assert codes == [None, *["features_invalid"] * 4]
    assert [
        error and error.code for _, error in validate(config.session, config.manifest, RunStats())
    ] == codes


@pytest.mark.parametrize("decode_images", [False, True])
def test_headers_tell_the_exact_tokens_of_every_row(case: Case, decode_images: bool) -> None:
    """A context one token shorter than a prompt needs refuses it, and no other."""
    manifest = ManifestConfig(str(case.manifest))
    for length in sorted({len(prompt) for prompt in case.prompts}):
        for context in (length, length + 1):
            session = case.session(engine=EngineConfig(max_model_len=context))
            checked = validate(session, manifest, RunStats(), decode_images=decode_images)
            verdicts = [error for _, error in checked]
            too_long = [len(prompt) >= context for prompt in case.prompts]
            assert [error is not None for error in verdicts] == too_long
            for error, prompt in zip(verdicts, case.prompts, strict=True):
                if error is not None:
                    assert error.code is ErrorCode.PROMPT_TOO_LONG
                    assert f"the prompt has {len(prompt)} tokens" in error.message


def test_bad_rows_cost_themselves_alone(
    case: Case, tokens: dict[int, list[int]], tmp_path: Path
) -> None:
    images = case.manifest.parent
    Image.new("RGB", (500, 10)).save(tmp_path / "strip.png")
    bad: list[tuple[str, list[object], str]] = [
        ("<image>", [], "image_token_mismatch"),
        ("no image", [images / "tiny.png"], "image_token_mismatch"),
        ("<image><image>", [images / "middle.png"], "image_token_mismatch"),
        ("<image>" * 23, [images / "turned.jpg"], "image_token_mismatch"),
        ("<image> and <image>", [images / "tiny.png", images / "none.png"], "image_missing"),
        ("", ["none.png"], "image_missing"),
        ("<image>", [tmp_path / "strip.png"], "image_too_large"),
        ("<image>" * 8, [images / "largest.png"] * 8, "prompt_too_long"),
    ]
    good = [json.loads(line) for line in case.manifest.read_text().splitlines()]
    lines = [{**row, "image": [str(images / name) for name in row["image"]]} for row in good]
    lines += [{"prompt": prompt, "image": list(map(str, given))} for prompt, given, _ in bad]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = case.job(tmp_path / "out.parquet", tmp_path / "m.jsonl")
    run(config, RunStats())
    codes = pq.read_table(tmp_path / "out.parquet")["error_code"].to_pylist()
    assert codes == [None] * len(good) + [code for *_, code in bad]
    assert [tokens[index] for index in range(len(good))] == case.expected
    assert [
        error and error.code for _, error in validate(config.session, config.manifest, RunStats())
    ] == codes


def test_images_from_python(case: Case) -> None:
    """Arrays and files, several to a request; then the features of one of them."""
    tokenizer = Tokenizer.load(case.model)
    folder = case.manifest.parent
    rows = [json.loads(line) for line in case.manifest.read_text().splitlines()]
    requests = [
        {
            "prompt": row["prompt"],
            "multi_modal_data": [ImagePixelData(held(folder / name)) for name in row["image"]],
        }
        for row in rows
    ]
    greedy = SamplingParams(max_tokens=MAX_TOKENS)
    with LLM(case.model, image_workers=0) as llm:
        answers = [output.outputs[0].token_ids for output in llm.generate(requests, greedy)]
        assert list(map(list, answers)) == case.expected
        pixels = torch.from_numpy(upright_pixels(folder / "wide.png"))
        (features,) = engine_of(llm).runner._model.extract_features([pixels], [])
    with LLM(case.model, image_input_type="image_features") as llm:
        given = ImageFeatureData(features.reshape(2, 8, -1))
        (output,) = llm.generate({"prompt": rows[4]["prompt"], "multi_modal_data": given}, greedy)
        assert list(output.outputs[0].token_ids) == case.expected[4]
        assert output.outputs[0].text == tokenizer.decode(case.expected[4])


@pytest.mark.parametrize(
    "given", [{"image_feature_size": 400}, {"image_input_shape": (1, 3, 80, 80)}]
)
def test_arguments_of_a_fixed_size_are_refused(case: Case, given: dict[str, Any]) -> None:
    session = case.session(image_arguments=ImageArguments(**given))
    with pytest.raises(ConfigError, match=r"varies with the size of the image"):
        open_model(session)


def test_benchmark_prompts_have_the_images_tokens_and_as_much_text(
    case: Case, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    prepare_checkpoint(str(case.model / "config.json"), checkpoint)
    config = load_model_config(checkpoint)
    processor = load_processor(checkpoint, config, PromptConfig(), ImageArguments())
    workload = replace(WORKLOADS["classify"], image_size=(100, 130))
    assert processor.images is not None
    grid = workload.grid(processor.images)
    assert (grid.height, grid.width) == (6, 6)
    manifest = write_inputs(workload, 2, tmp_path / "in", processor, seed=1, processes=1)
    measured = case.session(model=str(checkpoint))
    tokens = 6 * 6 + workload.text_tokens
    for context, code in ((tokens + 1, None), (tokens, ErrorCode.PROMPT_TOO_LONG)):
        session = replace(measured, engine=EngineConfig(max_model_len=context))
        checked = validate(session, ManifestConfig(str(manifest)), RunStats())
        assert {error and error.code for _, error in checked} == {code}


def test_bounds_follow_the_grid(case: Case) -> None:
    config = load_model_config(case.model)
    small, large = (
        model_costs(config, 4, IMAGES.grid(*size)).image_flops for size in ((20, 16), (400, 320))
    )
    assert large == 400 * small
