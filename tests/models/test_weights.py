"""Checkpoints that do not fit are refused, with the name of what does not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from pixel_scaling import scaling
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmbatch.attention import make_backend
from vlmbatch.errors import CheckpointError
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava.config import LlavaConfig
from vlmbatch.models.llava.model import Model as LlavaModel
from vlmbatch.models.registry import build_model, load_model, load_vision, random_model
from vlmbatch.models.weights import (
    describe_weights,
    materialise,
    random_weights,
    weight_slots,
)

Q_PROJ = "language_model.model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    make_checkpoint("llama", "clip", folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LlavaModel:
    config, cpu = load_model_config(folder), torch.device("cpu")
    backend = make_backend("torch", "cpu")
    model = load_model(folder, config, scaling(), cpu, dtype, backend)
    assert isinstance(model, LlavaModel)
    return model


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def drop_language_model(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("language_model.")]:
        del tensors[name]


def shard(folder: Path, files: int = 2) -> dict[str, str]:
    """Split the checkpoint into shards with an index; return the index's weight map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        names = sorted(tensors)[number::files]
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_missing_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(CheckpointError, match=r"missing: .*layers\.1\.self_attn\.q_proj\.weight$"):
        load(folder)


def test_left_over_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"language_model.model.extra": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"left over: language_model\.model\.extra in model"):
        load(folder)


def test_layers_past_the_configured_ones_are_left_over(folder: Path) -> None:
    def add_layer(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".layers.2." in name]:
            tensors[name.replace(".layers.2.", ".layers.3.")] = tensors[name].clone()

    edit(folder, add_layer)
    with pytest.raises(CheckpointError, match=r"language_model\.model\.layers\.3") as caught:
        load(folder)
    assert "vision_tower.vision_model.encoder.layers.3" in str(caught.value)


def test_misshapen_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({Q_PROJ: torch.ones(32, 31)}))
    message = r"shape of language_model\S*q_proj\.weight: expected \(32, 32\), found \(32, 31\)"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_integer_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({Q_PROJ: torch.ones(32, 32, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight: expected a float, found I8"):
        load(folder)


def test_same_tensor_in_both_layouts(folder: Path) -> None:
    twin = Q_PROJ.replace("language_model.model.", "model.language_model.")
    edit(folder, lambda tensors: tensors.update({twin: tensors[Q_PROJ].clone()}))
    with pytest.raises(CheckpointError, match=r"duplicate: .*q_proj") as caught:
        load(folder)
    assert twin in str(caught.value)
    assert Q_PROJ in str(caught.value)


def test_ten_problems_are_named_and_the_rest_counted(folder: Path) -> None:
    edit(folder, drop_language_model)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    expected = 3 * 9 + 3  # 9 tensors a layer, embedding, norm, head
    assert lines[-1] == f"  ... and {expected - 10} more"


def test_tensors_without_use_are_skipped(folder: Path) -> None:
    extra = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "vision_tower.vision_model.embeddings.position_ids": torch.ones(1, 17),
    }
    edit(folder, lambda tensors: tensors.update(extra))
    model = load(folder)
    assert len(model.vision_tower.encoder.layers) == 2  # of three: features come from layer -2


def test_a_model_that_is_given_features_has_no_tower(folder: Path) -> None:
    config, cpu = load_model_config(folder), torch.device("cpu")
    backend = make_backend("torch", "cpu")
    model = load_model(folder, config, None, cpu, torch.float32, backend)
    made_up = random_model(config, None, cpu, torch.float32, backend)
    for each in (model, made_up):
        assert isinstance(each, LlavaModel)
        assert not [name for name, _ in each.named_parameters() if "vision" in name]
    whole = load(folder)
    assert isinstance(config, LlavaConfig) and config.vision is not None
    size = config.vision.image_size
    pixels = torch.randint(256, (2, size, size, 3), dtype=torch.uint8)
    features = whole.extract_features(list(pixels), [])
    assert [each.shape for each in features] == 2 * [config.feature_shape]
    projected = model.project_features(features)
    assert all(map(torch.equal, projected, whole.encode_images(list(pixels), [])))
    assert model.project_features([each.double() for each in features])[0].dtype == torch.float32


def test_the_tower_alone_needs_nothing_else_of_the_checkpoint(folder: Path) -> None:
    whole = load(folder)
    edit(folder, drop_language_model)
    config, cpu = load_model_config(folder), torch.device("cpu")
    backend = make_backend("torch", "cpu")
    vision = load_vision(folder, config, scaling(), cpu, torch.float32, backend)
    pixels = torch.randint(256, (1, *config.image_input_shape[2:], 3), dtype=torch.uint8)
    (ours,) = vision.extract_features(list(pixels), [])
    (expected,) = whole.extract_features(list(pixels), [])
    assert torch.equal(ours, expected)
    assert isinstance(vision, nn.Module)
    assert {name.partition(".")[0] for name, _ in vision.named_parameters()} == {"vision_tower"}

    edit(folder, lambda tensors: tensors.pop(next(n for n in tensors if "layers.0.mlp.fc1" in n)))
    with pytest.raises(CheckpointError, match="missing: vision_tower"):
        load_vision(folder, config, scaling(), cpu, torch.float32, backend)


def test_tied_checkpoint_may_bring_a_head(tmp_path: Path) -> None:
    make_checkpoint("qwen2", "siglip", tmp_path)
    name = "language_model.model.embed_tokens.weight"
    edit(tmp_path, lambda t: t.update({"language_model.lm_head.weight": t[name].clone()}))
    assert load(tmp_path).lm_head is None


@pytest.mark.parametrize("size", [0, 7, 5_000, -1])
def test_truncated_file(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_a_clone_without_git_lfs_holds(folder: Path, name: str) -> None:
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n"
    )
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is a Git LFS pointer"):
        load(folder)


def test_file_that_cannot_be_opened(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.unlink()
    file.mkdir()
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors cannot be opened: Is a directory"
    ):
        load(folder)


def test_header_that_is_not_json(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:40] = b"\xff" * 32
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(folder)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        load(folder)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights in .*: expected model\.safetensors"):
        load(folder)


def test_shards_load_like_one_file(folder: Path, original: Path) -> None:
    shard(folder, 3)
    whole = dict(load(original).named_parameters())
    for name, parameter in load(folder).named_parameters():
        assert torch.equal(parameter, whole[name]), name


def test_files_are_described_by_what_changes_with_them(folder: Path) -> None:
    before = describe_weights(folder)
    assert before == describe_weights(folder)
    assert before.startswith("1 file of ")
    file = folder / "model.safetensors"
    os.utime(file, (1, 1))
    changed = describe_weights(folder)
    assert changed != before and changed.endswith(", changed at 1.000")
    file.write_bytes(file.read_bytes()[:-1])
    os.utime(file, (1, 1))
    assert describe_weights(folder) != changed


def test_missing_shard(folder: Path) -> None:
    file = shard(folder)[Q_PROJ]
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is missing: model\.safetensors\.index"):
        load(folder)


def test_tensor_twice_in_shards(folder: Path) -> None:
    weight_map = shard(folder)
    other = next(file for file in weight_map.values() if file != weight_map[Q_PROJ])
    tensors = load_file(folder / other)
    save_file(tensors | {Q_PROJ: torch.zeros(32, 32)}, folder / other)
    with pytest.raises(CheckpointError, match=f"duplicate: {Q_PROJ}"):
        load(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 5])
def test_index_may_not_leave_the_folder(folder: Path, name: str) -> None:
    write_index(folder, shard(folder) | {Q_PROJ: name})
    with pytest.raises(CheckpointError, match=r"index\.json.*expected"):
        load(folder)


def test_index_of_a_name_that_is_too_long(folder: Path) -> None:
    write_index(folder, shard(folder) | {Q_PROJ: "x" * 5000})
    with pytest.raises(CheckpointError, match=r"index\.json names .*no file can be called"):
        load(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": null}'])
def test_malformed_index(folder: Path, content: str) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        load(folder)


def test_dtype_is_converted_and_tables_follow(folder: Path, original: Path) -> None:
    model = load(folder, torch.bfloat16)
    wide = dict(load(original).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, wide[name].bfloat16()), name
    assert model.language_model.rotary.cos.dtype == torch.bfloat16
    assert model.pixel_normalizer.scale.dtype == torch.float32
    pixels = torch.zeros(1, 24, 24, 3, dtype=torch.uint8)
    assert model.encode_images(list(pixels), [])[0].dtype == torch.bfloat16


def test_slots_cover_every_parameter_once(original: Path) -> None:
    model = load(original)
    for parameter in model.parameters():
        parameter.zero_()
    for _, slot in weight_slots(model):
        slot.target.add_(1)
    assert all((parameter == 1).all() for parameter in model.parameters())


def test_random_weights_repeat(original: Path) -> None:
    def build(seed: int) -> list[Tensor]:
        config, backend = load_model_config(original), make_backend("torch", "cpu")
        model = build_model(config, scaling(), backend)
        assert next(model.parameters()).is_meta
        materialise(model, torch.device("cpu"), torch.float32)
        random_weights(model, seed)
        assert isinstance(model, LlavaModel)
        assert bool((model.language_model.norm.weight == 1).all())
        return list(model.parameters())

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
