"""torchvision without a GPU."""

from __future__ import annotations

import pytest
from fake_torchvision import FakeTorchvision


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> FakeTorchvision:
    fake = FakeTorchvision()
    fake.install(monkeypatch)
    return fake
