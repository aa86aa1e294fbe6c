"""Fixtures of several folders."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import in_process
import pytest
from fast_command import FastCommands, share_servers
from hypothesis import settings
from s3_server import S3Server, s3_server

from vlmbatch.session.cores import available_cores

# No deadline: a busy machine fails no test. A quarter of the usual examples, of many such tests.
settings.register_profile("untimed", deadline=None, max_examples=25)
settings.load_profile("untimed")

# Workers and hundreds of commands import the same files: they are compiled once, whatever is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: many tests wait for processes, disks and clocks."""
    return available_cores() + 2


def pytest_configure() -> None:
    hear_signals()
    share_servers()  # before xdist starts workers
    use_files_in_memory()


def hear_signals() -> None:
    """A shell has what it starts in the background ignore some, which commands would inherit."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            is_interrupt = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


def use_files_in_memory() -> None:
    """Tests write forty thousand files, for which a disk takes processor time too."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 8 * 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


gc.disable()  # until all tests are imported: what that makes is no garbage


def pytest_collection_finish() -> None:
    """Look for garbage among what tests make, not each time among torch and all tests too."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # what binds Triton tells of all that is left at exit, as of leaks
    gc.enable()
    gc.set_threshold(50_000, 20, 100)  # tests make much that lives no longer than they do


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder with the sample model, its manifest and images."""
    return Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastCommands]:
    with FastCommands(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """S3's API on the loopback, by moto."""
    with s3_server() as server:
        yield server


@pytest.fixture
def own_process() -> Iterator[None]:
    """Give back the log and signal handlers that calling ``main`` takes over."""
    with in_process.own_process():
        yield
