"""Engines whose model several processes divide: the logits, tokens and steps of one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import llava_next_case
import llava_next_checkpoints
import pytest
import qwen_vl_case
import qwen_vl_checkpoints
import torch
from PIL import Image
from rank_processes import COUNTS, Case, Outcome
from rows_case import write_rows

from vlmbatch.attention import make_backend
from vlmbatch.config import EngineConfig, ImageArguments, PromptConfig, SamplingParams
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.registry import load_vision
from vlmbatch.processes import search_path
from vlmbatch.types import FeatureImage, ImageRef, PixelImage, Request, Row

LLAVA_SIZES = {"wide": (40, 20), "tall": (20, 40)}
LLAVA_ROWS: list[tuple[str, list[str]]] = [
    ("only text", []),
    ("<image>what is it?", ["wide"]),
    ("<image>and<image>", ["tall", "wide"]),
    ("<image>what is it then?", ["wide"]),
]


def _few(rows: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Without an image, with two, and twice with the same one."""
    return [row for row in rows if row[1] in ([], ["wide"]) or row[1][1:] == row[1][:1]]


FAMILIES: dict[str, Any] = {
    "llava": (
        partial(checkpoints.make_checkpoint, "llama", "clip", tower_heads=4),
        LLAVA_SIZES,
        LLAVA_ROWS,
    ),
    **{
        name: (
            partial(llava_next_checkpoints.make_checkpoint, name, four_heads=True),
            llava_next_case.SIZES,
            _few(llava_next_case.ROWS),
        )
        for name in ("next-llama", "onevision")
    },
    **{
        name: (
            partial(qwen_vl_checkpoints.make_checkpoint, name, four_heads=True),
            qwen_vl_case.SIZES,
            _few(qwen_vl_case.ROWS),
        )
        for name in qwen_vl_checkpoints.KINDS
    },
}


def make_case(name: str, folder: Path) -> Case:
    """Rows of which some share images and prefixes, and one has stored features for an image."""
    make, sizes, rows = FAMILIES[name]
    make(folder / "model")
    write_rows(folder, sizes, rows)
    config = load_model_config(folder / "model")
    processor = load_processor(folder / "model", config, PromptConfig(), ImageArguments())
    requests = []
    for index, (prompt, names) in enumerate(rows):
        row = Row(index, "0", 1, "", prompt=prompt, images=(ImageRef("some"),) * len(names))
        of_row = processor.images.at(None, len(names))
        images = [of_row.process(Image.open(folder / f"{each}.png")) for each in names]
        encoded = processor.encode(processor.tokenize(row), images)
        requests.append(
            Request(
                index,
                encoded.token_ids,
                SamplingParams(max_tokens=4, ignore_eos=True),
                tuple(images),
                encoded.image_spans,
                encoded.positions,
                encoded.next_position,
            )
        )
    cpu, backend = torch.device("cpu"), make_backend("torch", "cpu")
    vision = load_vision(folder / "model", config, processor.images, cpu, torch.float32, backend)
    last = next(each for each in reversed(requests) if len(each.images) == 1)
    image = last.images[0]
    assert isinstance(image, PixelImage)
    (features,) = vision.extract_features([torch.from_numpy(image.pixels)], [image.grid])
    stored = FeatureImage(features.numpy(), b"features", image.grid)
    requests.append(replace(last, index=len(requests), images=(stored,)))
    engine = EngineConfig(device="cpu", max_num_seqs=4, max_batched_tokens=40)
    return Case(folder / "model", config, processor, engine, requests)


def preempted(case: Case) -> Case:
    """Texts that begin together, and grow until there is no room for all of them."""
    growing = SamplingParams(max_tokens=30, ignore_eos=True)
    requests = [Request(index, [10 + index] * 12, growing) for index in range(3)]
    return replace(case, requests=requests, engine=replace(case.engine, kv_cache_tokens=96))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """By the number of ranks, and the rank: an outcome for each family."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {name: make_case(name, folder / name) for name in FAMILIES}
    cases["preempted"] = preempted(cases["llava"])
    (folder / "cases").write_bytes(pickle.dumps(cases))
    environment = {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    ranks = subprocess.run(
        [sys.executable, "-P", "-c", "from rank_processes import main; main()", folder],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert ranks.returncode == 0, ranks.stderr
    return {
        (count, rank): pickle.loads((folder / f"{count}-{rank}").read_bytes())
        for count in COUNTS
        for rank in range(count)
    }


@pytest.mark.parametrize("name", [*FAMILIES, "preempted"])
def test_logits_and_tokens_are_those_of_one_rank(name: str, outcomes: Any) -> None:
    """With prompts in chunks, shared prefixes, and images as pixels and as features."""
    one: Outcome = outcomes[1, 0][name]
    assert one.preemptions if name == "preempted" else one.cached_tokens
    assert len(set(one.tokens.values())) >= 3
    for count in COUNTS[1:]:
        first: Outcome = outcomes[count, 0][name]
        assert len(first.logits) == len(one.logits)
        for ours, expected in zip(first.logits, one.logits, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        for rank in range(count):
            outcome: Outcome = outcomes[count, rank][name]
            assert outcome.tokens == one.tokens
            assert outcome.preemptions == one.preemptions
            assert outcome.cached_tokens == one.cached_tokens
            assert bool(outcome.logits) == (rank == 0), "one rank samples for all"


def test_ranks_hold_the_keys_and_values_of_their_own_heads(outcomes: Any) -> None:
    # Two heads: of four ranks, two hold each.
    sizes = [outcomes[count, 0]["qwen3_vl"].kv_cache for count in COUNTS]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 2]


def test_ranks_that_differ_are_refused_by_all(outcomes: Any) -> None:
    told = {outcomes[4, rank]["refusal"] for rank in range(4)}
    assert told == {
        "ranks cannot divide the model, as they differ in the device: "
        "H200 of rank 0, H100 of rank 1"
    }
