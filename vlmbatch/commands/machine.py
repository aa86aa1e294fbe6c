"""What a machine has of what vlmbatch needs or can use, and what mends what it lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmbatch import __version__
from vlmbatch.attention import INSTALL_FLASH_ATTN, INSTALL_TRITON, why_unavailable

State = Literal["ok", "missing", "optional"]
GIB = 2**30
TORCH = "pip install --force-reinstall 'torch>=2.11,<2.14'"
# What `pip install 'vlmbatch[NAME]'` installs, and what for.
EXTRAS = {
    "s3": (("s3fs",), "s3:// and stores with its API"),
    "gs": (("gcsfs",), "gs://"),
    "az": (("adlfs",), "az://"),
    "heic": (("pillow-heif",), "HEIC, the photos of phones"),
    "pdf": (("pypdfium2",), "pages of PDFs"),
    "ray": (("ray",), "runs on a Ray cluster"),
    "serve": (("starlette", "uvicorn", "httptools", "prometheus-client"), "vlmbatch serve"),
    "cuda": (("flash-attn", "torchvision"), "faster attention, --image-decoder gpu"),
}
STYLES: dict[State, str] = {"ok": "green", "missing": "bold red", "optional": "yellow"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line: "missing" is required and absent, "optional" would help and is absent."""

    name: str
    state: State
    found: str
    fix: str | None = None  # the command that mends it


def examine() -> list[Check]:
    """Look at everything; takes the seconds that importing torch takes."""
    return [
        Check("python", "ok", f"{platform.python_version()} at {sys.executable}"),
        Check("vlmbatch", "ok", __version__),
        *_torch_and_cuda(),
        _package("transformers", "transformers>=5.12,<6"),
        _package("tokenizers", "tokenizers>=0.22"),
        _package("llguidance", "llguidance>=1.9,<2"),
        _package("pyarrow", "pyarrow>=20.0"),
        _pillow(),
        *_machine(),
        _hub(),
        *(_extra(name) for name in EXTRAS),
    ]


def print_checks(checks: list[Check]) -> None:
    """The table on standard output, and the commands that mend what it shows."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        state = Text(check.state, style=STYLES[check.state])
        table.add_row(check.name, state, Text(check.found))
    console.print(table)
    for check in checks:
        if check.fix is not None:
            console.print(Text(f"\n{check.name}: {check.found}"))
            console.print(Text(f"  {check.fix}", style="bold"), soft_wrap=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, requirement: str) -> Check:
    version = _version(name)
    if version is None:
        return Check(name, "missing", "not installed", f"pip install '{requirement}'")
    return Check(name, "ok", version)


def _extra(name: str) -> Check:
    packages, purpose = EXTRAS[name]
    versions = {package: _version(package) for package in packages}
    found = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    if all(versions.values()):
        return Check(f"extra {name}", "ok", f"{found}: {purpose}")
    lacking = ", ".join(package for package, version in versions.items() if not version)
    there = f" ({found} is)" if found else ""
    lack = f"{lacking} not installed{there}: needed for {purpose}"
    return Check(f"extra {name}", "optional", lack, f"pip install 'vlmbatch[{name}]'")


def _torch_and_cuda() -> list[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it does not load
        return [Check("torch", "missing", f"cannot be imported: {error}", TORCH)]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    checks = [Check("torch", "ok", f"{torch.__version__}, {build}")]
    if not torch.cuda.is_available():
        return [*checks, _absent_cuda(has_cuda_build=torch.version.cuda is not None)]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = (
            f"{device.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, "
            f"capability {device.major}.{device.minor}"
        )
        checks.append(Check(f"CUDA device {index}", "ok", found))
    checks.append(_attention("flash-attn", INSTALL_FLASH_ATTN, "triton or torch does its work"))
    checks.append(_attention("triton", INSTALL_TRITON, "torch does its work"))
    checks.append(_torchvision())
    return checks


def _attention(name: str, install: str, instead: str) -> Check:
    """A package that attention on a GPU can use, by the name of its backend."""
    version = _version(name)
    if version is None:
        return Check(name, "optional", f"not installed: {instead}", install)
    lack = why_unavailable(name, "cuda")
    if lack is None:
        return Check(name, "ok", version)
    return Check(name, "optional", f"{version}, but {lack.reason}: {instead}", lack.remedy)


def _torchvision() -> Check:
    version = _version("torchvision")
    if version is None:
        found = "not installed: --image-decoder gpu needs it"
        return Check("torchvision", "optional", found, "pip install torchvision")
    return Check("torchvision", "ok", version)


def _absent_cuda(*, has_cuda_build: bool) -> Check:
    if not Path("/proc/driver/nvidia/version").exists():
        return Check(
            "CUDA device", "optional", "none: runs are on the CPU, without flash-attn and triton"
        )
    if has_cuda_build:
        found = "an NVIDIA driver is here, but torch cannot use it: it may be too old"
        return Check("CUDA device", "optional", found, "nvidia-smi")
    return Check(
        "CUDA device", "optional", "an NVIDIA driver is here, but torch is a CPU build", TORCH
    )


def _pillow() -> Check:
    try:
        from PIL import features
    except ImportError as error:
        return Check(
            "Pillow", "missing", f"cannot be imported: {error}", "pip install 'pillow>=12.0'"
        )
    version = _version("pillow")
    lacking = [name for name, key in (("JPEG", "jpg"), ("WebP", "webp")) if not features.check(key)]
    if lacking:
        found = f"{version}, built without {' and '.join(lacking)}"
        fix = "pip install --force-reinstall --only-binary :all: 'pillow>=12.0'"
        return Check("Pillow", "missing", found, fix)
    turbo = features.version("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else "plain libjpeg, slower than libjpeg-turbo"
    avif = f"AVIF {features.version('avif')}" if features.check("avif") else "no AVIF"
    return Check("Pillow", "ok", f"{version}, {jpeg}, WebP {features.version('webp')}, {avif}")


def _machine() -> list[Check]:
    disk = shutil.disk_usage(Path.cwd())
    free = f"{disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free in {Path.cwd()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    checks = [
        Check("cores", "ok", str(cores)),
        Check("memory", "ok", f"{_memory() / GIB:.1f} GiB"),
        Check("disk", "ok", free),
    ]
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
        checks.insert(2, Check("shared memory", "ok", found))
    return checks


def _memory() -> int:
    """Bytes of memory, or of the container's limit where that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(installed, int(text)) if text.isdigit() else installed


def _hub() -> Check:
    try:
        from huggingface_hub import constants
    except ImportError as error:
        return Check(
            "Hugging Face Hub",
            "missing",
            f"cannot be imported: {error}",
            "pip install 'huggingface-hub>=1.0'",
        )
    state = "offline (HF_HUB_OFFLINE is set), " if constants.HF_HUB_OFFLINE else ""
    return Check("Hugging Face Hub", "ok", f"{state}cache in {constants.HF_HUB_CACHE}")
