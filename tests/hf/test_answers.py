"""Tiny random models of other classes: a run's answers are those of a plain ``generate``, row by
row, whatever a row is batched with."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_case import Case, make_images
from hf_checkpoints import KINDS

from vlmbatch.models.shrink import Shrink

SCALED = ("gemma3", "got_ocr2", "idefics3")  # of one size, of one image a row, in tiles


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest,
    images: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param].make(folder)
    return Case(folder, KINDS[request.param], images)


def test_answers_are_those_of_a_plain_generate(case: Case) -> None:
    found = case.run([case.manifest_row(row) for row in case.rows])
    assert len({row["text"] for row in found}) > 1
    for row, result in zip(case.rows, found, strict=True):
        inputs = case.inputs(row)
        token_ids = case.answer(inputs)
        assert result["error_message"] is None
        assert result["text"] == case.text(token_ids)
        assert result["completion_tokens"] == len(token_ids)
        assert result["prompt_tokens"] == inputs["input_ids"].shape[1]
        image_token_id = case.model.config.image_token_id
        assert result["image_tokens"] == int((inputs["input_ids"] == image_token_id).sum())
        assert (result["image_tokens"] > 0) == bool(row.images)


@pytest.mark.parametrize(
    "case",
    [pytest.param(kind, marks=() if kind in SCALED else pytest.mark.soak) for kind in KINDS],
    indirect=True,
)
def test_images_may_be_scaled_down_first(case: Case) -> None:
    """The processor is given them so; a row may ask for fewer pixels than the run."""
    rows = [row for row in case.rows if len(row.images) == 1][:2]
    found = case.run(
        [case.manifest_row(rows[0]), {**case.manifest_row(rows[1]), "max_pixels": 300}],
        *("--longest-side", "25"),
    )
    shrinks = [Shrink(longest_side=25), Shrink(longest_side=25, max_pixels=300)]
    for row, result, shrink in zip(rows, found, shrinks, strict=True):
        whole = case.pictures(row)
        smaller = [shrink.apply(image) for image in whole]
        assert smaller[0].size != whole[0].size
        assert result["text"] == case.text(case.answer(case.inputs(row, smaller)))


def test_chats_are_those_of_the_checkpoints_own_template(case: Case) -> None:
    rows = case.rows
    plain = [
        {**case.manifest_row(row), "prompt": row.prompt.replace("<image>", "")} for row in rows
    ]
    if not case.kind.chats:
        case.run(plain, "--chat", status=2)
        return
    found = case.run(plain, "--chat")
    for row, result in zip(rows, found, strict=True):
        inputs = case.chat_inputs(row)
        assert result["error_message"] is None
        assert result["prompt_tokens"] == inputs["input_ids"].shape[1]
        assert result["text"] == case.text(case.answer(inputs))
