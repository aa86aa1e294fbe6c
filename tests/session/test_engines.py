"""How many engines there are, and where, for what is asked for and what there is."""

from __future__ import annotations

import re

import pytest
import torch

from vlmbatch.config import EngineConfig
from vlmbatch.errors import ConfigError
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
    return [place.variables["CUDA_VISIBLE_DEVICES"] for place in places]


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


REFUSED = [
    (EngineConfig(gpus="5"), None, "--gpus 5: there are 4 here"),
    (EngineConfig(gpus="0,4"), None, "--gpus 0,4: there are 4 here, of which the last is 3"),
    (EngineConfig(gpus="5"), "0,1,2,3", "--gpus 5: there are 4 here, as CUDA_VISIBLE_DEVICES=0,1"),
    (EngineConfig(gpus="0,1"), "0,1,2,3", "--gpus 0,1 with CUDA_VISIBLE_DEVICES=0,1,2,3: name"),
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
        (f"replica {index}", {}) for index in range(3)
    ]
    with pytest.raises(ConfigError, match="--gpus 2: there is no GPU here that can be used"):
        engine_places(EngineConfig(gpus="2"), "all")


def test_replicas_on_the_cpu_of_a_machine_with_gpus(four_gpus: None) -> None:
    assert len(engine_places(EngineConfig(device="cpu", replicas=2), "all")) == 2
    assert engine_places(EngineConfig(device="cpu"), "all") == ()
