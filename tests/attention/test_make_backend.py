"""Which backend runs where, and what is said when it is not the fastest."""

from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vlmbatch import attention
from vlmbatch.attention import make_backend, why_unavailable
from vlmbatch.errors import ConfigError

Patch = pytest.MonkeyPatch


class FakeFlash:
    """In place of ``FlashAttnBackend``, whose module needs flash-attn to be imported."""

    name = "flash-attn"
    failure: Exception | None = None

    def try_out(self, device: str) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.fixture(autouse=True)
def new_warnings() -> None:
    attention._warn_once.cache_clear()


@pytest.fixture
def gpu(monkeypatch: Patch) -> None:
    """A GPU as far as the choice of a backend asks, with triton."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))


def install_flash_attn(
    monkeypatch: Patch, failure: Exception | None = None, *, importable: bool = True
) -> None:
    package = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.delitem(sys.modules, "vlmbatch.attention.flash", raising=False)
    if importable:
        backend = type("FlashAttnBackend", (FakeFlash,), {"failure": failure})
        module: Any = SimpleNamespace(FlashAttnBackend=backend)
        monkeypatch.setitem(sys.modules, "vlmbatch.attention.flash", module)


def remove(monkeypatch: Patch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_the_cpu_has_torch(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert make_backend(name, "cpu").name == "torch"
    assert not caplog.records


@pytest.mark.parametrize("name", ["flash-attn", "triton"])
def test_the_cpu_has_nothing_else(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: it needs a CUDA device, not 'cpu'; choose"):
        make_backend(name, "cpu")


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"'xformers'.*: auto, flash-attn, triton, torch"):
        make_backend("xformers", "cpu")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_with_everything(monkeypatch: Patch, caplog: pytest.LogCaptureFixture) -> None:
    install_flash_attn(monkeypatch)
    for name, backend in (("auto", "flash-attn"), ("flash-attn",) * 2, ("triton",) * 2):
        assert make_backend(name, "cuda", torch.bfloat16).name == backend
    assert not caplog.records


@pytest.mark.usefixtures("gpu")
def test_without_flash_attn_triton_runs_and_one_warning_says_so(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    remove(monkeypatch, "flash_attn")
    for _ in range(3):
        assert make_backend("auto", "cuda:0").name == "triton"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "flash-attn is not installed: the slower attention backend triton is used instead; "
        "try: pip install --no-build-isolation 'vlmbatch[cuda]'"
    )


@pytest.mark.usefixtures("gpu")
def test_a_gpu_with_torch_alone(monkeypatch: Patch, caplog: pytest.LogCaptureFixture) -> None:
    remove(monkeypatch, "flash_attn", "triton")
    assert make_backend("auto", "cuda").name == "torch"
    (record,) = caplog.records
    message = record.getMessage()
    assert "flash-attn is not installed and triton cannot be imported" in message
    assert "backend torch is used" in message
    assert message.endswith("'vlmbatch[cuda]', or: pip install triton")


@pytest.mark.usefixtures("gpu")
def test_a_flash_attn_of_another_torch(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    """A package without what we import from it, as an extension that does not load leaves it."""
    install_flash_attn(monkeypatch, importable=False)
    assert make_backend("auto", "cuda").name == "triton"
    assert "flash-attn cannot be imported (" in caplog.text
    assert "--force-reinstall flash-attn" in caplog.text
    with pytest.raises(ConfigError, match=r"cannot be imported .*try: pip install .*, or choose"):
        make_backend("flash-attn", "cuda")


@pytest.mark.usefixtures("gpu")
def test_a_flash_attn_without_kernels_for_the_gpu(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("no kernel image is available\nand much more")
    install_flash_attn(monkeypatch, error)
    assert make_backend("auto", "cuda").name == "triton"
    assert "flash-attn does not run on this GPU (no kernel image is available)" in caplog.text
    with pytest.raises(ConfigError, match="does not run on this GPU"):
        make_backend("flash-attn", "cuda")


@pytest.mark.usefixtures("gpu")
def test_float32_is_not_for_flash_attn(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    install_flash_attn(monkeypatch)
    assert make_backend("auto", "cuda", torch.float32).name == "triton"
    assert not caplog.records  # nothing is missing
    with pytest.raises(ConfigError, match=r"not in torch\.float32; choose"):
        make_backend("flash-attn", "cuda", torch.float32)


@pytest.mark.usefixtures("gpu")
def test_an_old_gpu_has_torch(monkeypatch: Patch) -> None:
    install_flash_attn(monkeypatch, RuntimeError("FlashAttention only supports Ampere or newer"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert make_backend("auto", "cuda").name == "torch"
    with pytest.raises(ConfigError, match=r"capability 8\.0, this one has 7\.5"):
        make_backend("triton", "cuda")


@pytest.mark.usefixtures("gpu")
def test_why_unavailable(monkeypatch: Patch) -> None:
    install_flash_attn(monkeypatch)
    assert why_unavailable("flash-attn", "cuda") is None
    remove(monkeypatch, "flash_attn")
    lack = why_unavailable("flash-attn", "cuda")
    assert lack is not None and lack.remedy is not None
    assert lack.reason == "flash-attn is not installed"
