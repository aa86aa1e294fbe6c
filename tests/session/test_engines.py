"""How many engines there are, and where, for what is asked for and what there is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from vlmbatch.config import EngineConfig
from vlmbatch.errors import ConfigError
from vlmbatch.models.text_config import TextConfig, check_divides
from vlmbatch.session import engines
from vlmbatch.session.engines import engine_places


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4)


def machine(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(engines, "may_have_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)


def visible(places: tuple[engines.EnginePlace, ...]) -> list[str]:
    """Of the first rank of each."""
    return [place.variables[0]["CUDA_VISIBLE_DEVICES"] for place in places]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (None, ["0", "1", "2", "3"]),
        ("all", ["0", "1", "2", "3"]),
        ("3", ["0", "1", "2"]),
        ("3,1", ["3", "1"]),
        ("1", []),
    ],
)
def test_each_engine_sees_one_gpu(four_gpus: None, gpus: str | None, expected: list[str]) -> None:
    places = engine_places(EngineConfig(gpus=gpus), "all")
    assert visible(places) == expected
    assert [place.name for place in places] == [f"GPU {number}" for number in expected]


def test_a_server_uses_one_unless_it_is_told(four_gpus: None) -> None:
    assert engine_places(EngineConfig(), "one") == ()
    assert len(engine_places(EngineConfig(gpus="2"), "one")) == 2


def test_gpus_are_those_that_the_environment_names(
    four_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)  # torch reads the variable too
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc, 5,1")
    assert visible(engine_places(EngineConfig(), "all")) == ["GPU-abc", "5", "1"]
    assert visible(engine_places(EngineConfig(gpus="2"), "all")) == ["GPU-abc", "5"]


def test_ranks_that_divide_a_model_see_a_gpu_each(four_gpus: None) -> None:
    def ranks(default: Literal["all", "one"], **settings: Any) -> list[list[str]]:
        places = engine_places(EngineConfig(**settings), default)
        return [[each["CUDA_VISIBLE_DEVICES"] for each in place.variables] for place in places]

    assert ranks("all", tensor_parallel=2) == [["0", "1"], ["2", "3"]]
    assert ranks("all", tensor_parallel=3) == [["0", "1", "2"]]
    assert ranks("one", tensor_parallel=2) == [["0", "1"]]
    assert ranks("one", tensor_parallel=2, gpus="3,1,0,2") == [["3", "1"], ["0", "2"]]
    (place,) = engine_places(EngineConfig(tensor_parallel=2), "one")
    assert place.name == "GPUs 0+1" and place.gpus == (0, 1)


LLAMA = TextConfig("llama", 100, 64, 96, 2, 8, 2, 8, 1e-5, 512)
DIVIDED = [
    (LLAMA, 3, "--tensor-parallel 3: the model has 8 attention heads, which 3 does not divide"),
    (replace(LLAMA, num_kv_heads=3), 2, "the model has 3 key-value heads, which 2 does not divide"),
    (replace(LLAMA, num_kv_heads=8), 16, "the model has 8 attention heads, which 16 does not"),
    (replace(LLAMA, intermediate_size=98), 4, "has 98 feed-forward columns, which 4 does not"),
]


@pytest.mark.parametrize(("text", "ranks", "message"), DIVIDED)
def test_a_model_that_cannot_be_divided_is_refused(
    text: TextConfig, ranks: int, message: str
) -> None:
    for fine in (1, 2, 4, 8):
        check_divides(LLAMA, fine)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_divides(text, ranks)


REFUSED = [
    (EngineConfig(gpus="5"), None, "--gpus 5: there are 4 here"),
    (EngineConfig(gpus="0,4"), None, "--gpus 0,4: there are 4 here, of which the last is 3"),
    (EngineConfig(gpus="5"), "0,1,2,3", "--gpus 5: there are 4 here, as CUDA_VISIBLE_DEVICES=0,1"),
    (EngineConfig(gpus="0,1"), "0,1,2,3", "--gpus 0,1 with CUDA_VISIBLE_DEVICES=0,1,2,3: name"),
    (
        EngineConfig(tensor_parallel=5),
        None,
        "--tensor-parallel 5 takes as many GPUs, and",
    ),
    (
        EngineConfig(gpus="3", tensor_parallel=2),
        None,
        "3 GPUs are no multiple of 2",
    ),
    (
        EngineConfig(gpus="2", tensor_parallel=4),
        None,
        "2 GPUs are no multiple of 4",
    ),
    (EngineConfig(replicas=2), None, "--replicas 2 is for CPUs, and there are GPUs here"),
]


@pytest.mark.parametrize(("config", "named", "message"), REFUSED)
def test_what_is_not_there_is_refused(
    four_gpus: None,
    monkeypatch: pytest.MonkeyPatch,
    config: EngineConfig,
    named: str | None,
    message: str,
) -> None:
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    with pytest.raises(ConfigError, match=re.escape(message)):
        engine_places(config, "all")


@pytest.mark.parametrize("driver", [False, True])
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, driver: bool) -> None:
    """Also where there is a driver, and nothing that it drives."""
    machine(monkeypatch, 0)
    monkeypatch.setattr(engines, "may_have_cuda", lambda: driver)
    assert engine_places(EngineConfig(), "all") == ()
    assert engine_places(EngineConfig(gpus="all"), "all") == ()
    replicas = engine_places(EngineConfig(replicas=3), "all")
    assert [(place.name, place.variables) for place in replicas] == [
        (f"replica {index}", ({},)) for index in range(3)
    ]
    (divided,) = engine_places(EngineConfig(tensor_parallel=2), "one")
    assert divided.variables == ({}, {})
    with pytest.raises(ConfigError, match="--gpus 2: there is no GPU here that can be used"):
        engine_places(EngineConfig(gpus="2"), "all")


def test_replicas_on_the_cpu_of_a_machine_with_gpus(four_gpus: None) -> None:
    assert len(engine_places(EngineConfig(device="cpu", replicas=2), "all")) == 2
    assert engine_places(EngineConfig(device="cpu"), "all") == ()
