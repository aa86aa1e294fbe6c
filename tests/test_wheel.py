"""The wheel, built without a network, installed alone and tried outside the checkout.

An editable install is what all other tests run in.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import environment

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
SOURCES = ("vlmbatch", "kernels", "configs", "pyproject.toml", "README.md", "LICENSE")
SAMPLE_MODELS = {"tiny-llava", "tiny-qwen-vl"}  # of the checkout alone
DATA = {path.name for path in (ROOT / "configs").iterdir() if path.stem not in SAMPLE_MODELS}
NAMES = {name.removesuffix(".toml") for name in DATA if name.endswith(".toml")}

Installed = Callable[..., "subprocess.CompletedProcess[str]"]


def python(*arguments: object, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=folder,
        env=environment(PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as an installer from an index would."""
    source = tmp_path_factory.mktemp("source")  # so that building leaves nothing in the checkout
    caches = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=caches)
        else:
            shutil.copy(ROOT / name, source)
    dist = tmp_path_factory.mktemp("dist")
    python("build", "--no-isolation", "--outdir", dist, source, folder=dist)
    [path] = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Run programs of a new environment, which takes its dependencies from that of the tests."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", symlinks=True)
    # Of what is added so, .pth files do not count: the tests' own vlmbatch is not among it.
    [site] = (home / "venv/lib").glob("python*/site-packages")
    others = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in others))
    install = ("pip", "--python", home / "venv/bin/python", "install", "--no-deps", "--quiet")
    python(*install, wheel, folder=home)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [home / "venv/bin" / str(arguments[0]), *map(str, arguments[1:])],
            cwd=home,
            env={**environment(OMP_NUM_THREADS="1"), "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )

    code = "import vlmbatch, vlmbatch_kernels as k; print(vlmbatch.__file__); print(k.__file__)"
    where = run("python", "-c", code).stdout.splitlines()
    assert len(where) == 2 and all(Path(path).is_relative_to(site) for path in where), where
    return run


def test_the_wheel_holds_what_the_repository_holds(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        str(path.relative_to(root))
        for root in (ROOT, ROOT / "kernels")
        for package in ("vlmbatch", "vlmbatch_kernels")
        for path in (root / package).rglob("*.py")
    }
    markers = {"vlmbatch/py.typed", "vlmbatch_kernels/py.typed"}
    data = {f"vlmbatch/configs/{name}.toml" for name in NAMES} | {
        "vlmbatch/configs/llava-1.5.jinja",
        *(f"vlmbatch/report/page.{kind}" for kind in ("html", "css", "js")),
    }
    assert names == modules | markers | data


def test_help_and_version(installed: Installed) -> None:
    done = installed("vlmbatch", "--help")
    assert done.returncode == 0 and "validate" in done.stdout, done.stderr
    assert installed("vlmbatch", "--version").stdout.startswith("vlmbatch ")


def test_doctor(installed: Installed) -> None:
    done = installed("vlmbatch", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr


def test_validate(installed: Installed) -> None:
    manifest, model = SAMPLES / "manifest.jsonl", SAMPLES / "tiny-llava"
    done = installed("vlmbatch", "validate", manifest, "-m", model, "--limit", 5)
    assert done.returncode == 0, done.stderr
    assert "5 can be answered" in done.stderr


def test_a_configuration_and_a_template_by_name(installed: Installed) -> None:
    sample = ("validate", SAMPLES / "manifest.jsonl", "-m", SAMPLES / "tiny-llava", "--limit", 1)
    done = installed("vlmbatch", *sample, "--config", "llava-1.5-7b")  # another model's
    assert done.returncode == 2
    assert "image_token_id is given as 32000, but the model's is 4" in done.stderr
    done = installed("vlmbatch", *sample, "--chat", "--chat-template", "llava-1.5")
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_lists_what_was_installed(installed: Installed) -> None:
    done = installed("vlmbatch", "validate", "m.jsonl", "--config", "nope")
    assert done.returncode == 2
    listed = set(done.stderr.strip().rpartition("one of the names ")[2].split(", "))
    assert listed == NAMES
