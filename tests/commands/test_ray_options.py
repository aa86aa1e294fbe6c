"""What is refused of ``run --ray``, and how its address is told from what follows it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import call
from loopback import serving

from vlmbatch.commands.ray_address import with_address

RUN = ("run", "m.jsonl", "-m", "x")


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        (["run", "--ray", "m.jsonl"], ["run", "--ray", "auto", "m.jsonl"]),
        (["run", "m.jsonl", "--ray"], ["run", "m.jsonl", "--ray", "auto"]),
        (["run", "--ray", "-o", "out/"], ["run", "--ray", "auto", "-o", "out/"]),
        (["run", "--ray", "10.0.0.1:6379", "m"], ["run", "--ray", "10.0.0.1:6379", "m"]),
        (["run", "--ray", "[::1]:6379", "m"], ["run", "--ray", "[::1]:6379", "m"]),
        (["run", "--ray", "local", "m"], ["run", "--ray", "local", "m"]),
        (["run", "--ray", "ray://head:10001"], ["run", "--ray", "ray://head:10001"]),
        (["run", "--ray", "a/b:1", "-m", "x"], ["run", "--ray", "auto", "a/b:1", "-m", "x"]),
        (["run", "--ray=head:1", "m"], ["run", "--ray=head:1", "m"]),
        ([], []),
    ],
)
def test_an_address_may_be_left_out(given: list[str], complete: list[str]) -> None:
    assert with_address(given) == complete


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "m.jsonl").write_text('{"prompt": "Hi"}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "a.parquet", "--ray"), "--ray needs a folder that all nodes see"),
        (("-o", "-", "--ray"), "standard output is one stream"),
        (("-o", "a" * 300, "--ray"), "cannot be looked at: File name too long"),
        (("-o", f"{'a' * 300}.parquet", "--shard", "0/4"), "cannot be looked at: File name too"),
        (("--ray",), "no output given"),
        (("-o", "s3://b/a.parquet", "--ray"), "s3://b/a.parquet names a file"),
        (("-o", "hf://datasets/a/b", "--ray"), "a data set gets one commit"),
        (("-o", "s3://b/a/", "--ray", "--shard", "0/4"), "--ray and --shard 0/4 contradict"),
        (("-o", "out/", "--ray", "--shard", "0/4"), "--ray and --shard 0/4 contradict each other"),
        (("-o", "out/", "--ray", "--gpus", "2"), "--ray and --gpus 2 contradict each other"),
        (("-o", "out/", "--ray", "--replicas", "2"), "--ray and --replicas 2 contradict"),
        (("-o", "out/", "--ray", "--write-text", "t/"), "--write-text t/ and --ray auto"),
        (("-o", "out/", "--ray", "--sample", "2"), "--sample 2 and --ray contradict each other"),
        (("-o", "out/", "--ray=nonsense"), "--ray nonsense: must be HOST:PORT"),
        (("-o", "out/", "--ray=head:99999"), "--ray head:99999: must be HOST:PORT"),
        (("-o", "out/", "--ray="), "ray must not be empty"),
        (("-o", "out/", "--ray", "ray://head:10001"), "not through Ray Client"),
        (("-o", "out/", "--ray", "no.such.invalid:6379"), "no Ray cluster can be reached there"),
        (("-o", "out/", "--ray", "--overwrite", "--incremental"), "contradict each other"),
    ],
)
def test_refusals(
    here: Path, options: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call([*RUN, *options]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert message in told
    assert [path.name for path in here.iterdir()] == ["m.jsonl"]


def test_standard_input_is_of_one_machine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output in ("out/", "s3://bucket/out/"):
        assert call(["run", "-", "-m", "x", "-o", output, "--ray"]) == 2
        assert "standard input is this machine's" in capsys.readouterr().err


def test_a_port_that_nobody_listens_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert call([*RUN, "-o", "out/", "--ray", address]) == 2
    assert f"--ray {address}: no Ray cluster can be reached there" in capsys.readouterr().err


def test_a_port_of_something_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(BaseHTTPRequestHandler) as url:
        address = url.removeprefix("http://")
        assert call([*RUN, "-o", "out/", "--ray", address]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"--ray {address}: something else than a Ray cluster answers there" in told


def test_a_port_that_never_answers(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmbatch.ray.cluster._CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert call([*RUN, "-o", "out/", "--ray", address]) == 2
    assert "no answer within 0.1 s" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 1.0"), "Ray: 1.0"),
        (ConnectionError("Could not find any running Ray instance."), "`ray start --head`"),
        (ValueError("no such thing"), "no Ray cluster can be reached: no such thing"),
        (LookupError("the token is wrong."), "no Ray cluster can be reached: the token is wrong"),
    ],
)
def test_what_ray_raises(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
    message: str,
) -> None:
    fake_ray(monkeypatch, failure)
    assert call([*RUN, "-o", "out/", "--ray"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_sigterm_while_ray_connects(
    here: Path,
    own_process: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_ray(monkeypatch, SystemExit(signal.SIGTERM))  # as Ray's handler does, once it can
    assert call([*RUN, "-o", "out/", "--ray"]) == 128 + signal.SIGTERM
    assert "terminated: no row was answered" in capsys.readouterr().err


def fake_ray(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    """One that cannot connect."""

    def init(**options: object) -> None:
        raise failure

    monkeypatch.setitem(os.environ, "RAY_USAGE_STATS_ENABLED", "0")
    exceptions = SimpleNamespace(RayError=LookupError)
    fake = SimpleNamespace(init=init, shutdown=lambda: None, exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "ray", fake)


def test_without_ray(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(os.environ, "RAY_USAGE_STATS_ENABLED", "0")
    assert call([*RUN, "-o", "out/", "--ray"]) == 2
    assert 'pip install "vlmbatch[ray]"' in capsys.readouterr().err
