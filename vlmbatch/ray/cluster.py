"""The Ray cluster: reached or refused, and what it has to give to each engine."""

from __future__ import annotations

import io
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from vlmbatch.config import Device
from vlmbatch.errors import UsageError
from vlmbatch.log import logger
from vlmbatch.session.signals import ending_signals

INSTALL = 'pip install "vlmbatch[ray]"'

_CONNECT_SECONDS = 5.0  # Ray itself tries for minutes, and cannot be interrupted meanwhile

# What a client of gRPC says first, and a server's answer begins with: RFC 9113, sections 3.4, 6.5.
_HTTP2_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2_SETTINGS


@dataclass(frozen=True, slots=True)
class Share:
    """What one engine gets of one node, and how many engines the cluster has room for."""

    num_gpus: int
    num_cpus: int
    count: int


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to the cluster at ``address``: HOST:PORT, "auto" or "local".

    What Ray prints meanwhile goes to the log. The connection ends with the context, and with it
    every actor of this process.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached, or is of another
            version.
    """
    _check_reachable(_host_and_port(address))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handlers = {number: signal.getsignal(number) for number in ending_signals()}
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"--ray {address}: Ray is not installed ({error}): {INSTALL}, on all nodes of the "
            "cluster"
        ) from error
    with redirect_stdout(_RayMessages()):
        try:
            try:
                _connect(ray, address)
            except SystemExit:  # of Ray's own handler of SIGTERM: ours ends the command
                signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])
                signal.raise_signal(signal.SIGTERM)
            for number, handler in handlers.items():  # Ray has put its own there
                signal.signal(number, handler)
            yield ray
        finally:
            ray.shutdown()
            for number, handler in handlers.items():
                signal.signal(number, handler)


def share_of(nodes: Sequence[Mapping[str, Any]], device: Device, ranks: int = 1) -> Share:
    """What each engine is to ask for; ``nodes``: as ``ray.nodes()`` tells them.

    A GPU for each of the ``ranks`` that divide its model, with as many CPUs as every node that has
    so many has for them. Where there is no GPU, or with ``device`` "cpu", the CPUs of the smallest
    node.

    Raises:
        UsageError: nothing in the cluster can answer.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [node for node in alive if node.get("GPU", 0) >= 1]
    with_enough = [node for node in with_gpus if node["GPU"] >= ranks]
    cpus = [int(node["CPU"]) for node in alive if node.get("CPU", 0) >= 1]
    if device != "cpu" and with_gpus:
        if not with_enough:
            most = max(int(node["GPU"]) for node in with_gpus)
            raise UsageError(
                f"--tensor-parallel {ranks} takes as many GPUs of one node, and no node of the Ray "
                f"cluster has more than {most}"
            )
        ratios = [int(node.get("CPU", 0) * ranks // node["GPU"]) for node in with_enough]
        return Share(ranks, min(ratios), sum(int(node["GPU"] // ranks) for node in with_enough))
    there = f"{len(alive)} node{'' if len(alive) == 1 else 's'} with {sum(cpus)} CPUs"
    if device == "cuda":
        raise UsageError(f"--device cuda: the Ray cluster has no GPU, but {there}")
    if not cpus:
        raise UsageError(f"the Ray cluster has neither a GPU nor a CPU to answer on: {there}")
    return Share(0, min(cpus), sum(number // min(cpus) for number in cpus))


def room_on(nodes: Sequence[Mapping[str, Any]], share: Share) -> int:
    """For how many engines with such a share there is room, whatever else runs there."""
    return sum(
        int(
            min(
                node["Resources"].get(name, 0) // number
                for name, number in (("GPU", share.num_gpus), ("CPU", share.num_cpus))
                if number
            )
        )
        for node in nodes
        if node["Alive"]
    )


def _connect(ray: Any, address: str) -> None:
    verbose = logger.isEnabledFor(10)
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": "WARNING"}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise _unreachable(address, error) from error
        raise UsageError(
            f"--ray {address}: the cluster is of another version. {_one_line(error)}. Use the same "
            "versions of Ray and Python here and there"
        ) from error
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:  # or a wrong token
        raise _unreachable(address, error) from error


def _host_and_port(address: str) -> tuple[str, int] | None:
    """Where a cluster is to be; None where Ray has to find one."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    if address in ("auto", "local"):
        return None
    if "://" in address:
        raise UsageError(
            f"--ray {address}: vlmbatch runs on the cluster itself, and not through Ray Client: "
            "give HOST:PORT, as `ray start` shows it, on one of its machines; or submit the "
            "command with `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) >= 2**16:
        raise UsageError(
            f"--ray {address}: must be HOST:PORT, such as 10.0.0.1:6379, local or auto"
        )
    return host.strip("[]"), int(port)


def _check_reachable(place: tuple[str, int] | None) -> None:
    if place is None:
        return
    name = f"{place[0]}:{place[1]}"
    try:
        with socket.create_connection(place, _CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
                return
            connection.sendall(_HTTP2_PREFACE)
            with connection.makefile("rb") as answers:
                answer = answers.read(len(_HTTP2_SETTINGS))
    except OSError as error:
        late = f"no answer within {_CONNECT_SECONDS:g} s"
        reason = late if isinstance(error, TimeoutError) else error.strerror or error
        raise UsageError(f"--ray {name}: no Ray cluster can be reached there: {reason}") from error
    if answer[3:4] != _HTTP2_SETTINGS[3:4]:
        raise UsageError(
            f"--ray {name}: something else than a Ray cluster answers there. Give the port that "
            "`ray start --head` shows, 6379 unless it was told another"
        )


def _unreachable(address: str, error: Exception) -> UsageError:
    if address == "auto" and isinstance(error, ConnectionError):
        return UsageError(
            "--ray: no Ray cluster runs on this machine, and RAY_ADDRESS is not set: start one "
            "with `ray start --head`, or give its address, --ray HOST:PORT. Without a cluster "
            "leave out --ray"
        )
    return UsageError(f"--ray {address}: no Ray cluster can be reached: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


class _RayMessages(io.TextIOBase):
    """What Ray prints on standard output, which may carry our own figures."""

    def write(self, text: str, /) -> int:
        if line := text.strip():
            logger.debug("%s", line)
        return len(text)
