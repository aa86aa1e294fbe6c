"""What the benchmark makes: prompts of exact lengths, photo-like images, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from vlmbatch.bench import pictures
from vlmbatch.bench.inputs import write_inputs
from vlmbatch.bench.pages import make_page
from vlmbatch.bench.photos import make_photo
from vlmbatch.bench.pictures import write_pictures
from vlmbatch.bench.random_checkpoint import built_in_configs, make_tokenizer, prepare_checkpoint
from vlmbatch.bench.workloads import WORKLOADS, parse_workloads
from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.models import family
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava.image_processor import LlavaImageProcessor
from vlmbatch.models.llava.processor import LlavaProcessor
from vlmbatch.types import ImageRef, Row

SAMPLE = Path(__file__).parents[2] / "samples/tiny-llava"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> LlavaProcessor:
    """LLaVA-1.5-7B's processor, from its built-in config alone."""
    folder = tmp_path_factory.mktemp("llava")
    prepare_checkpoint("llava-1.5-7b", folder)
    return load_processor(folder)


def load_processor(folder: Path, max_model_len: int | None = None) -> LlavaProcessor:
    config = load_model_config(folder)
    images = ImageArguments()
    loaded = family.load_processor(folder, config, PromptConfig(), images, max_model_len)
    assert isinstance(loaded, LlavaProcessor)
    return loaded


def read_rows(manifest: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def prompt_lengths(processor: LlavaProcessor, rows: list[dict[str, str]]) -> set[int]:
    return {
        len(
            processor.tokenize(
                Row(index, "", 1, "", prompt=row["prompt"], images=(ImageRef(row["image"]),))
            ).encoded.token_ids
        )
        for index, row in enumerate(rows)
    }


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts alone are written: nobody looks at the images."""
    monkeypatch.setattr("vlmbatch.bench.inputs.write_pictures", lambda *given, **more: None)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("classify", 600), ("caption", 614), ("vqa", 593), ("photos", 600), ("pages", 594)],
)
def test_prompt_lengths_of_llava(
    llava: LlavaProcessor, name: str, expected: int, tmp_path: Path
) -> None:
    workload = WORKLOADS[name]
    num_images = 1 if name == "photos" else 2
    manifest = write_inputs(workload, num_images, tmp_path / name, llava, seed=5, processes=1)
    rows = read_rows(manifest)
    assert len(rows) == num_images * workload.questions
    assert prompt_lengths(llava, rows) == {expected}
    assert len({row["prompt"] for row in rows}) == len(rows)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", WORKLOADS)
def test_prompts_of_a_smaller_model_keep_their_text(name: str, tmp_path: Path) -> None:
    sample = load_processor(SAMPLE)
    workload = WORKLOADS[name].on("cpu")
    manifest = write_inputs(workload, 1, tmp_path / name, sample, seed=5, processes=1)
    expected = workload.text_tokens + sample.config.image_feature_size
    assert prompt_lengths(sample, read_rows(manifest)) == {expected}


def test_every_image_has_its_first_question_before_any_has_its_second(
    llava: LlavaProcessor, tmp_path: Path
) -> None:
    manifest = write_inputs(WORKLOADS["vqa"], 3, tmp_path / "in", llava, seed=5, processes=1)
    images = [row["image"] for row in read_rows(manifest)]
    assert images == images[:3] * 8
    files = [(manifest.parent / name).read_bytes() for name in images[:3]]
    assert len(set(files)) == 3


def test_another_seed_gives_other_images(llava: LlavaProcessor, tmp_path: Path) -> None:
    first, second = (
        write_inputs(WORKLOADS["classify"], 1, tmp_path / str(seed), llava, seed, processes=1)
        for seed in (1, 2)
    )
    image = "images/000000.jpg"
    assert (first.parent / image).read_bytes() != (second.parent / image).read_bytes()


def test_a_context_too_short_is_refused_with_the_numbers(tmp_path: Path) -> None:
    sample = load_processor(SAMPLE, max_model_len=265)
    with pytest.raises(ConfigError, match=r"138 prompt tokens and generates 128.*265"):
        write_inputs(WORKLOADS["caption"], 1, tmp_path / "in", sample, seed=1, processes=1)


@pytest.mark.parametrize(
    ("picture", "size", "expected"),
    [
        ("photo", (640, 480), 75_000),
        ("photo", (4032, 3024), 3_000_000),
        ("page", (1024, 1448), 490_000),
    ],
    ids=str,
)
def test_file_sizes_are_those_of_photos_and_scans(
    picture: Literal["photo", "page"], size: tuple[int, int], expected: int, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{index}.jpg" for index in range(4 if size[0] < 1000 else 1)]
    write_pictures(paths, picture, size, seed=3, processes=1)
    for path in paths:
        assert path.stat().st_size == pytest.approx(expected, rel=0.1)
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)


def test_processes_write_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_WORTH_A_PROCESS", 64 * 48)
    written = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        paths = [folder / f"{index}.jpg" for index in range(5)]
        write_pictures(paths, "photo", (64, 48), seed=9, processes=processes)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    assert len(set(written[0])) == 5


def test_a_photo_survives_resizing() -> None:
    """Its content is not all grain, which a vision tower's input size averages away."""
    small = make_photo((640, 480), (1, 2)).resize((32, 24), Image.Resampling.BOX)
    assert np.asarray(small).std() > 20


def test_a_page_is_mostly_paper_and_has_lines_of_ink() -> None:
    page = np.asarray(make_page((1024, 1448), (1, 2)).convert("L"))
    ink = page < 128
    assert 0.03 < ink.mean() < 0.3
    has_ink = ink.any(axis=1)
    assert 30 < np.diff(has_ink.astype(int)).clip(0).sum() <= 60, "lines with paper between them"
    assert not np.array_equal(page, np.asarray(make_page((1024, 1448), (1, 3)).convert("L")))


def test_on_a_cpu_answers_are_short() -> None:
    assert WORKLOADS["pages"].on("cuda").max_tokens == 512
    assert [w.on("cpu").max_tokens for w in WORKLOADS.values()] == [4, 128, 16, 4, 128]


def test_the_tokenizer_fills_llavas_vocabulary(llava: LlavaProcessor) -> None:
    tokenizer = llava.tokenizer
    assert tokenizer.token_text(32_000) == llava.image_token == "<image>"
    assert tokenizer.encode("<image> pabo") == [1, 32_000, tokenizer.encode(" pabo")[1]]
    assert all(tokenizer.token_text(index) is not None for index in range(32_064))
    assert tokenizer.token_text(32_064) is None
    assert tokenizer.decode(tokenizer.encode("Straße 7!")) == "Straße 7!"


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    assert make_tokenizer(260, 259).get_vocab_size() == 260
    with pytest.raises(CheckpointError, match=r"at least 260 tokens.*the config has 259"):
        make_tokenizer(259, 5)


def test_a_checkpoint_from_a_folder_keeps_its_tokenizer(tmp_path: Path) -> None:
    prepare_checkpoint(str(SAMPLE), tmp_path)
    assert load_processor(tmp_path).settings == load_processor(SAMPLE).settings
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_checkpoint_from_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((SAMPLE / "config.json").read_bytes())
    (tmp_path / "made").mkdir()
    for source in (tmp_path, tmp_path / "config.json"):
        prepare_checkpoint(str(source), tmp_path / "made")
        processor = load_processor(tmp_path / "made")
        assert processor.config == load_model_config(SAMPLE)
        assert isinstance(processor.images, LlavaImageProcessor)
        assert processor.images.output_size == (80, 80)


def test_the_hub_id_of_a_built_in_config(tmp_path: Path) -> None:
    prepare_checkpoint("llava-hf/llava-1.5-7b-hf", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == built_in_configs()["llava-1.5-7b"]


def test_an_unknown_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*llava-1\.5-7b"):
        prepare_checkpoint("nowhere", tmp_path)


def test_workload_names() -> None:
    assert [w.name for w in parse_workloads("vqa, classify")] == ["vqa", "classify"]
    with pytest.raises(
        ConfigError, match=r"no workload 'nap'.*classify, caption, vqa, photos, pages"
    ):
        parse_workloads("vqa,nap")
    with pytest.raises(ConfigError, match="vqa is given twice"):
        parse_workloads("vqa,vqa")


def test_rows_of_a_workload_with_several_questions() -> None:
    vqa = WORKLOADS["vqa"]
    assert [vqa.num_images(rows) for rows in (1, 8, 15, 1024)] == [1, 1, 1, 128]
