"""``vlmbatch doctor`` on machines as they may be."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlmbatch.attention import UnavailableError
from vlmbatch.cli import main
from vlmbatch.commands import machine as doctor
from vlmbatch.commands.machine import Check, examine

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("own_process")


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_is_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"python", "vlmbatch", "torch", "transformers", "pyarrow", "Pillow"} <= checks.keys()
    assert {"cores", "memory", "disk", "Hugging Face Hub"} <= checks.keys()
    assert checks["Pillow"]["found"].startswith(importlib.metadata.version("pillow"))


def test_a_missing_requirement_ends_with_1_and_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes the import fail
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "missing" in shown
    assert "  pip install --force-reinstall 'torch>=2.11,<2.14'\n" in shown


def test_every_extra_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert doctor.EXTRAS.keys() == extras.keys() - {"dev"}
    for name, (packages, _) in doctor.EXTRAS.items():
        assert [re.match(r"[\w-]+", each)[0] for each in sorted(extras[name])] == sorted(packages)
    monkeypatch.setattr(doctor, "_version", {"starlette": "1.0", "s3fs": "2026.9"}.get)
    assert doctor._extra("s3").state == "ok"
    partly = doctor._extra("serve")
    assert partly.fix == "pip install 'vlmbatch[serve]'"
    assert partly.found.startswith("uvicorn, httptools, prometheus-client not installed (starlette")


def test_a_gpu_without_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="Test GPU", major=9, minor=0)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: device,
        mem_get_info=lambda index: (70 * 2**30, 80 * 2**30),
    )
    torch = SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda="13.0"), cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    checks = by_name(doctor._torch_and_cuda())
    assert checks["torch"].found == "2.13.0, CUDA 13.0"
    assert checks["CUDA device 0"].found == "Test GPU, 70.0 of 80.0 GiB free, capability 9.0"
    assert checks["flash-attn"].state == "optional"
    assert checks["flash-attn"].fix is not None and "vlmbatch[cuda]" in checks["flash-attn"].fix


@pytest.mark.parametrize("lack", [None, UnavailableError("flash-attn is broken", "mend it")])
def test_an_installed_flash_attn(
    lack: UnavailableError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "2.8.3")
    monkeypatch.setattr(doctor, "why_unavailable", lambda name, device: lack)
    check = doctor._attention("flash-attn", "install it", "triton does its work")
    if lack is None:
        assert check == Check("flash-attn", "ok", "2.8.3")
    else:
        found = "2.8.3, but flash-attn is broken: triton does its work"
        assert check == Check("flash-attn", "optional", found, "mend it")


def test_offline_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert by_name(examine())["Hugging Face Hub"].found.startswith("offline")
