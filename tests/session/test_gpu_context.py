"""Which process makes a GPU's context before torch is imported, and what it asks the driver."""

from __future__ import annotations

from typing import Any

import pytest

from vlmbatch.config import EngineConfig
from vlmbatch.session import gpu_context
from vlmbatch.session.gpu_context import make_context_early, make_primary_context


class Driver:
    """Notes calls; the one that is called ``failing`` returns an error."""

    def __init__(self, failing: str | None = None) -> None:
        self._failing = failing
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> int:
            self.called.append(name)
            return 100 if name == self._failing else 0

        return call


@pytest.mark.parametrize("failing", [None, "cuInit", "cuDeviceGet"])
def test_nothing_is_asked_of_a_driver_that_has_failed(failing: str | None) -> None:
    calls = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    driver = Driver(failing)
    make_primary_context(driver)
    assert driver.called == (calls if failing is None else calls[: calls.index(failing) + 1])


@pytest.mark.parametrize(
    ("settings", "visible", "wanted"),
    [
        ({}, "0", True),
        ({}, "GPU-abc", True),
        ({}, "0,1", False),
        ({}, "", False),
        ({"gpus": "all"}, "3", True),
        ({"gpus": "1"}, "0,1", True),
        ({"gpus": "2"}, "0,1", False),
        ({"gpus": "0,1"}, "0,1", False),
        ({"device": "cpu"}, "0", False),
        ({"tensor_parallel": 2}, "0,1", False),
    ],
)
def test_only_a_process_of_one_gpu_makes_a_context(
    settings: dict[str, Any], visible: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[None] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    monkeypatch.setattr(gpu_context, "may_have_cuda", lambda: True)
    monkeypatch.setattr(gpu_context, "_make_context", lambda: made.append(None))
    thread = make_context_early(EngineConfig(**settings))
    if thread is not None:
        thread.join()
    assert (thread is not None, len(made)) == (wanted, wanted)


def test_a_machine_without_a_driver_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_context, "may_have_cuda", lambda: False)
    assert make_context_early(EngineConfig()) is None
