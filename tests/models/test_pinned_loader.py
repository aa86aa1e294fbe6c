"""A tensor loaded piece by piece fills its slot as it does in one go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pixel_scaling import scaling
from safetensors.torch import save_file
from torch import nn

from vlmbatch.attention import make_backend
from vlmbatch.errors import CheckpointError
from vlmbatch.models import pinned_loader
from vlmbatch.models.family import load_model_config
from vlmbatch.models.parallel import Share
from vlmbatch.models.pinned_loader import load_from_files, pieces
from vlmbatch.models.registry import build_model, load_model
from vlmbatch.models.stored_tensor import StoredTensor, stored_tensors
from vlmbatch.models.weight_slot import WeightSlot
from vlmbatch.models.weights import materialise, weight_slots

SAMPLE = Path(__file__).parents[2] / "samples" / "tiny-llava"
CPU = torch.device("cpu")


@contextmanager
def stored(tensor: torch.Tensor, offset: int = 3) -> Iterator[StoredTensor]:
    """A tensor in a file, behind ``offset`` other bytes."""
    with TemporaryFile() as file:
        file.write(b"x" * offset + tensor.numpy().tobytes())
        file.flush()
        yield StoredTensor(file, offset, tensor.dtype, tuple(tensor.shape))


def read(piece: StoredTensor) -> torch.Tensor:
    memory = bytearray(piece.num_bytes)
    piece.read_into(memoryview(memory))
    return torch.frombuffer(memory, dtype=piece.dtype).view(piece.shape)


@st.composite
def checkpoint_tensors(draw: st.DrawFn) -> tuple[torch.Tensor, Share | None, int]:
    """A tensor of distinct numbers, and which part of it a rank takes."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    dim = draw(st.integers(0, min(1, len(shape) - 1)))
    if draw(st.booleans()):
        return tensor, None, 0
    start = draw(st.integers(0, shape[dim] - 1))
    count = draw(st.integers(1, shape[dim] - start))
    return tensor, Share(shape[dim], start, count), dim


@given(checkpoint_tensors(), st.integers(1, 300))
def test_pieces_are_small_and_together_the_whole(
    given: tuple[torch.Tensor, Share | None, int], num_bytes: int
) -> None:
    tensor, share, dim = given
    part = tensor if share is None else tensor.narrow(dim, share.start, share.count)
    slots = [WeightSlot(torch.full_like(part, -1), share, dim) for _ in range(2)]
    slots[0].load(tensor)
    with stored(tensor) as file:
        for piece, target in pieces(file, slots[1], num_bytes):
            assert piece.num_bytes <= num_bytes or piece.num_rows == 1
            target.load(read(piece))
    assert torch.equal(slots[1].target, slots[0].target)


def test_rows_of_other_ranks_are_not_read() -> None:
    tensor = torch.arange(12.0).view(6, 2)
    slot = WeightSlot(torch.empty(2, 2), Share(6, 4, 2))
    with stored(tensor) as file:
        parts = [read(part).tolist() for part, _ in pieces(file, slot, 8)]
    assert parts == [[[8.0, 9.0]], [[10.0, 11.0]]]


@pytest.mark.parametrize("num_bytes", [1, 1000])
def test_the_pieces_of_a_vector_are_its_numbers(num_bytes: int) -> None:
    slot = WeightSlot(torch.zeros(5, dtype=torch.bfloat16))
    with stored(torch.arange(5.0)) as file:
        for part, target in pieces(file, slot, num_bytes):
            target.load(read(part))
    assert slot.target.tolist() == [0, 1, 2, 3, 4]


def test_rows_are_quantized_piece_by_piece_as_in_one_go() -> None:
    tensor, share = torch.randn(37, 64), Share(64, 16, 32)
    filled = []
    for num_bytes in (1, 9 * 64 * 4, tensor.nbytes):
        target, scales = torch.empty(37, 32, dtype=torch.float8_e4m3fn), torch.empty(37, 1)
        slot = WeightSlot(target, share, 1, row_scales=scales)
        with stored(tensor) as file:
            for part, place in pieces(file, slot, num_bytes):
                place.load(read(part))
        filled.append(target.float() * scales)
    assert torch.equal(filled[0], filled[2]) and torch.equal(filled[1], filled[2])
    assert (filled[0] - tensor[:, 16:48]).norm() <= 0.05 * tensor[:, 16:48].norm()


@pytest.mark.parametrize("buffer_bytes", [1500, 2**20])
def test_weights_read_by_threads_are_those_of_the_mapped_file(
    buffer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers smaller than a row, and more pieces than buffers."""
    monkeypatch.setattr(pinned_loader, "_BUFFER_BYTES", buffer_bytes)
    given = (load_model_config(SAMPLE), scaling())
    backend = make_backend("torch", "cpu")
    mapped = load_model(SAMPLE, *given, CPU, torch.float32, backend)
    model = build_model(*given, backend)
    materialise(model, CPU, torch.float32)
    with (SAMPLE / "model.safetensors").open("rb") as file:
        tensors = {model.parameter_name(name): it for name, it in stored_tensors(file).items()}
        slots = list(weight_slots(model))
        load_from_files(((tensors[name], slot) for name, slot in slots), CPU)
    assert isinstance(mapped, nn.Module)
    expected = dict(chain(mapped.named_parameters(), mapped.named_buffers()))
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, expected[name]), name


def test_every_type_of_a_float_lies_where_its_header_says(tmp_path: Path) -> None:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    tensors = {str(dtype): torch.arange(6.0).view(2, 3).to(dtype) for dtype in types}
    others = {"number": torch.tensor(4.0), "integers": torch.arange(3)}
    save_file({**tensors, **others}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with (tmp_path / "a.safetensors").open("rb") as file:
        found = stored_tensors(file)
        assert found.keys() == {*tensors, "number"}
        assert read(found["number"]).item() == 4.0
        for name, tensor in tensors.items():
            assert torch.equal(read(found[name]).float(), tensor.float())


def test_a_file_that_became_shorter_is_named_with_both_sizes() -> None:
    tensor = torch.arange(100.0)
    with stored(tensor, offset=0) as file:
        file.file.truncate(399)
        with pytest.raises(CheckpointError, match=r"has 399 bytes, .* ends at byte 400: it was"):
            load_from_files([(file, WeightSlot(torch.empty(100)))], CPU)
