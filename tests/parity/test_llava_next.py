"""LLaVA-NeXT and LLaVA-OneVision against transformers on tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from answered_tokens import answered_tokens
from in_process import call
from llava_next_case import MAX_TOKENS, ROWS, SIZES, Case, make_case
from llava_next_checkpoints import IMAGE_TOKEN_ID, KINDS, make_checkpoint
from llava_next_ours import Ours
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmbatch.api.llm import LLM
from vlmbatch.config import (
    EngineConfig,
    ImageArguments,
    ImageLoading,
    ManifestConfig,
    SamplingParams,
)
from vlmbatch.engine.loading import build_engine
from vlmbatch.errors import ErrorCode
from vlmbatch.jobs.run import run
from vlmbatch.jobs.validate import validate
from vlmbatch.models.family import load_model_config
from vlmbatch.stats import RunStats
from vlmbatch.types import Request

SETTINGS = {
    "default": EngineConfig(),
    "without a prefix cache": EngineConfig(enable_prefix_caching=False),
    "one at a time": EngineConfig(max_num_seqs=1),
    "chunks of 1": EngineConfig(max_batched_tokens=1),
    "chunks of 7": EngineConfig(max_batched_tokens=7, enable_prefix_caching=False),
}

CUT_UP = ("next-llama", "onevision")  # the decoder of the third is cut up in test_hf_greedy


_load = cache(Ours.load)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Each is made once, in whatever order they are asked for."""
    return cache(lambda kind: make_case(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


@pytest.fixture
def ours(case: Case) -> Ours:
    return _load(case.model)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)


@torch.inference_mode()
def their_features(theirs: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    given = {key: value for key, value in inputs.items() if not key.endswith(("ids", "mask"))}
    features: list[Tensor] = theirs.get_image_features(**given, return_dict=True).pooler_output
    return features


def test_image_features(case: Case, ours: Ours) -> None:
    for inputs, (_, names) in zip(case.inputs, ROWS, strict=True):
        if names:
            features = ours.features(case.manifest.parent, names)
            for mine, theirs in zip(features, their_features(case.theirs, inputs), strict=True):
                assert_near(mine, theirs)


def test_tiles_in_several_passes_of_the_tower(
    case: Case, ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(SIZES)
    images = [ours.images(case.manifest.parent, [name])[0] for name in names]
    pixels = [torch.from_numpy(image.pixels) for image in images]
    grids = [image.grid for image in images]
    expected = ours.model.encode_images(pixels, grids)
    for most in (1, 20, 60):
        monkeypatch.setattr("vlmbatch.models.llava_next.model._MAX_TOWER_TOKENS", most)
        for mine, whole in zip(ours.model.encode_images(pixels, grids), expected, strict=True):
            assert_near(mine, whole)


def test_prompts(case: Case, ours: Ours) -> None:
    for inputs, (prompt, names) in zip(case.inputs, ROWS, strict=True):
        encoded = ours.encoded(prompt, names)
        assert encoded.token_ids == inputs["input_ids"][0].tolist()
        assert encoded.positions is None and encoded.next_position is None


@pytest.mark.parametrize("chunk", [3, 10_000])
def test_logits(case: Case, ours: Ours, chunk: int) -> None:
    theirs = case.their_logits("cpu", torch.float32)
    for mine, expected in zip(ours.logits(case.manifest.parent, chunk), theirs, strict=True):
        assert_near(mine, expected)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """The tokens of the rows that a run has answered."""
    return answered_tokens(monkeypatch)


@pytest.mark.parametrize(
    ("case", "name"),
    [(kind, name) for kind in KINDS for name in (SETTINGS if kind in CUT_UP else ["default"])],
    indirect=["case"],
)
def test_greedy_tokens(case: Case, name: str, tokens: dict[int, list[int]], tmp_path: Path) -> None:
    engine = SETTINGS[name]
    stats = RunStats()
    run(case.job(tmp_path / "out.parquet", engine=engine), stats)
    assert stats.num_errors == 0, stats.error_examples
    assert [tokens[index] for index in range(len(ROWS))] == case.expected
    if engine.max_num_seqs == 1:
        assert stats.cached_tokens > 0, "a row begins as another does"
    out = pq.read_table(tmp_path / "out.parquet")
    counts = [int((inputs["input_ids"] == IMAGE_TOKEN_ID).sum()) for inputs in case.inputs]
    assert out["image_tokens"].to_pylist() == counts


@pytest.mark.parametrize("case", CUT_UP, indirect=True)
def test_images_that_workers_decode(
    case: Case, tokens: dict[int, list[int]], tmp_path: Path
) -> None:
    """An image in a row of its own and among others: two images to the model that tiles one."""
    run(case.job(tmp_path / "out.parquet", image_loading=ImageLoading(workers=1)), RunStats())
    assert [tokens[index] for index in range(len(ROWS))] == case.expected


def test_images_of_python_callers(case: Case) -> None:
    """Decoded ones too are told how many their row shows."""
    requests: list[Any] = []
    for prompt, names in ROWS:
        images = [Image.open(case.manifest.parent / f"{name}.png") for name in names]
        data = {"multi_modal_data": {"image": images}} if images else {}
        requests.append({"prompt": prompt, **data})
    with LLM(str(case.model), image_workers=0) as llm:
        outputs = llm.generate(requests, SamplingParams(max_tokens=MAX_TOKENS))
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    assert answers == case.expected


@pytest.mark.parametrize(
    ("case", "pool"), [("next-llama", 192), ("onevision", 160)], indirect=["case"]
)
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_greedy_tokens_from_a_pool_that_runs_dry(
    case: Case, ours: Ours, pool: int, prefix_caching: bool
) -> None:
    config = EngineConfig(
        kv_cache_tokens=pool, max_batched_tokens=40, enable_prefix_caching=prefix_caching
    )
    engine = build_engine(case.model, load_model_config(case.model), config, ours.processor)
    sequences = []
    for index, (prompt, names) in enumerate(ROWS):
        encoded = ours.encoded(prompt, names)
        images = tuple(ours.images(case.manifest.parent, names))
        sampling = SamplingParams(max_tokens=MAX_TOKENS)
        request = Request(index, encoded.token_ids, sampling, images, encoded.image_spans)
        sequences.append(engine.add(request))
    while engine.num_unfinished:
        engine.step()
        engine.scheduler.check_integrity()
    assert [sequence.output_token_ids for sequence in sequences] == case.expected
    assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("case", CUT_UP, indirect=True)
def test_stored_features_in_the_place_of_images(
    case: Case, tokens: dict[int, list[int]], tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    command = ["features", case.manifest, "-m", case.model, "-o", folder, "-q"]
    assert call([*command, "--image-workers", 0]) == 0
    for chunk in (3, 4096):
        stored = case.job(
            tmp_path / f"{chunk}.parquet",
            folder / "manifest.jsonl",
            image_arguments=ImageArguments("image_features", disable_image_processor=True),
            engine=EngineConfig(max_batched_tokens=chunk),
        )
        tokens.clear()
        run(stored, RunStats())
        assert [tokens[index] for index in range(len(ROWS))] == case.expected
    assert {error for _, error in validate(stored.session, stored.manifest, RunStats())} == {None}


def test_headers_tell_the_exact_tokens_of_every_row(case: Case) -> None:
    """A context one token shorter than a prompt needs refuses it, and no other."""
    lengths = [inputs["input_ids"].shape[1] for inputs in case.inputs]
    for context in {length + more for length in lengths for more in (0, 1)}:
        session = case.session(engine=EngineConfig(max_model_len=context))
        checked = validate(session, ManifestConfig(str(case.manifest)), RunStats())
        for (_, error), length in zip(checked, lengths, strict=True):
            assert (error is not None) == (length >= context)
            if error is not None:
                assert error.code is ErrorCode.PROMPT_TOO_LONG
                assert f"the prompt has {length} tokens" in error.message


@pytest.mark.parametrize("name", KINDS)
def test_layouts(name: str, tmp_path: Path) -> None:
    """The same tensors by other names: of transformers 5, and of towers as once published."""
    folders = [tmp_path / layout for layout in ("published", "internal", "older")]
    for folder in folders:
        make_checkpoint(name, folder, published=folder != folders[1])
    older = folders[2] / "model.safetensors"
    tensors = load_file(older)
    save_file(
        {
            tensor.replace("vision_tower.", "vision_tower.vision_model."): value
            for tensor, value in tensors.items()
        },
        older,
        {"format": "pt"},
    )
    names = []
    for folder in folders:
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append(frozenset(file.keys()))
    assert len(set(names)) == 3
    first, *others = (Ours.load(folder).model.state_dict() for folder in folders)
    for other in others:
        assert first.keys() == other.keys()
        for tensor, value in first.items():
            torch.testing.assert_close(value, other[tensor], atol=0, rtol=0)
