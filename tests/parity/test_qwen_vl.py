"""Qwen-VL models against transformers' on tiny checkpoints: features, logits, greedy tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from answered_tokens import answered_tokens
from in_process import call
from PIL import Image
from qwen_vl_case import MAX_TOKENS, ROWS, Case, make_case
from qwen_vl_checkpoints import KINDS, make_checkpoint
from qwen_vl_ours import Ours
from safetensors import safe_open
from torch import Tensor

from vlmbatch.config import (
    EngineConfig,
    ImageArguments,
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

CUT_UP = ("qwen2_5_vl", "qwen3_vl")  # the third differs from the first in its tower alone


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


@torch.inference_mode()
def their_features(theirs: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Of each image, with the deep levels beside the first."""
    made = theirs.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
    )
    deep = getattr(made, "deepstack_features", None) or []
    sizes = [len(image) for image in made.pooler_output]
    levels = [torch.cat(list(level)).split(sizes) for level in (made.pooler_output, *deep)]
    return [torch.cat(image, dim=1) for image in zip(*levels, strict=True)]


def test_image_features(case: Case, ours: Ours) -> None:
    for inputs, (_, names) in zip(case.inputs, ROWS, strict=True):
        if names:
            features = ours.features(case.manifest.parent, names)
            for mine, theirs in zip(features, their_features(case.theirs, inputs), strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_prompts_and_positions(case: Case, ours: Ours) -> None:
    for inputs, (prompt, names) in zip(case.inputs, ROWS, strict=True):
        encoded = ours.encoded(prompt, names)
        assert encoded.token_ids == inputs["input_ids"][0].tolist()
        if not names:
            assert encoded.positions is None and encoded.next_position is None
            continue
        positions, delta = case.theirs.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
        )
        np.testing.assert_array_equal(encoded.positions, positions[:, 0].numpy())
        assert encoded.next_position == len(encoded.token_ids) + delta.item()


@pytest.mark.parametrize("chunk", [3, 10_000])
def test_logits(case: Case, ours: Ours, chunk: int) -> None:
    theirs = case.their_logits("cpu", torch.float32)
    for mine, expected in zip(ours.logits(case.manifest.parent, chunk), theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
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
    assert out["image_tokens"].to_pylist() == [
        int(inputs["mm_token_type_ids"].sum()) for inputs in case.inputs
    ]


@pytest.mark.parametrize("case", CUT_UP, indirect=True)
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_greedy_tokens_from_a_pool_that_runs_dry(
    case: Case, ours: Ours, prefix_caching: bool
) -> None:
    config = EngineConfig(
        kv_cache_tokens=96, max_batched_tokens=40, enable_prefix_caching=prefix_caching
    )
    model_config = load_model_config(case.model)
    engine = build_engine(case.model, model_config, config, ours.processor)
    assert ours.processor.images is not None
    sequences = []
    for index, (prompt, names) in enumerate(ROWS):
        images = tuple(
            ours.processor.images.process(Image.open(case.manifest.parent / f"{name}.png"))
            for name in names
        )
        encoded = ours.encoded(prompt, names)
        request = Request(
            index,
            encoded.token_ids,
            SamplingParams(max_tokens=MAX_TOKENS),
            images,
            encoded.image_spans,
            encoded.positions,
            encoded.next_position,
        )
        sequences.append(engine.add(request))
    while engine.num_unfinished:
        engine.step()
        engine.scheduler.check_integrity()
    assert [sequence.output_token_ids for sequence in sequences] == case.expected
    assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("case", CUT_UP, indirect=True)
@pytest.mark.parametrize("chunk", [3, 4096])
def test_stored_features_in_the_place_of_images(
    case: Case, tokens: dict[int, list[int]], tmp_path: Path, chunk: int
) -> None:
    folder = tmp_path / "features"
    command = ["features", case.manifest, "-m", case.model, "-o", folder, "-q"]
    assert call([*command, "--image-workers", 0]) == 0
    stored = case.job(
        tmp_path / "out.parquet",
        folder / "manifest.jsonl",
        image_arguments=ImageArguments("image_features", disable_image_processor=True),
        engine=EngineConfig(max_batched_tokens=chunk),
    )
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
                alone = "the image of" in error.message  # which has as many tokens by itself
                assert alone or f"the prompt has {length} tokens" in error.message


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_transformers_5(kind: str, tmp_path: Path) -> None:
    """The same tensors by other names."""
    folders = (tmp_path / "published", tmp_path / "internal")
    for folder in folders:
        make_checkpoint(kind, folder, published=folder == folders[0])
    names = []
    for folder in folders:
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert (names[0] == names[1]) == (kind == "qwen3_vl")
    published, internal = (Ours.load(folder).model.state_dict() for folder in folders)
    assert published.keys() == internal.keys()
    for name, tensor in published.items():
        torch.testing.assert_close(tensor, internal[name], atol=0, rtol=0)
