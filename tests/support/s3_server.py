"""A server with S3's API on loopback, and a proxy before it that holds or cuts what is sent."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from object_server import access

_BLOCK = 2**16


@dataclass(frozen=True)
class S3Server:
    """``client``: botocore's, for the test."""

    port: int
    client: Any

    @property
    def url(self) -> str:
        return _url(self.port)

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads there."""
        return access(self.url)

    def keys(self, bucket: str) -> dict[str, int]:
        """The objects by key, with their sizes."""
        listing = self.client.list_objects_v2(Bucket=bucket)
        return {entry["Key"]: entry["Size"] for entry in listing.get("Contents", ())}

    def read(self, bucket: str, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """One server of this process."""
    from botocore.session import Session
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        client = Session().create_client(
            "s3",
            endpoint_url=_url(port),
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        yield S3Server(port, client)
    finally:
        server.stop()


class Proxy:
    """Passes connections on to ``port``; ``before`` is called with what a client sends next.

    It may block, or raise ``ConnectionError`` to cut the connection off.
    """

    def __init__(self, port: int, before: Callable[[bytes], None]) -> None:
        self._target = port
        self._before = before
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return _url(self.port)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            pair = (client, server)
            threading.Thread(target=self._pass, args=(*pair, self._before), daemon=True).start()
            reversed_pair = (server, client)
            threading.Thread(
                target=self._pass, args=(*reversed_pair, lambda _: None), daemon=True
            ).start()

    def _pass(
        self, source: socket.socket, sink: socket.socket, before: Callable[[bytes], None]
    ) -> None:
        try:
            while data := source.recv(_BLOCK):
                before(data)
                sink.sendall(data)
        except OSError:  # cut off, by ``before`` or by an end
            pass
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
