"""The process that counts pages: ``python -m vlmbatch.images.loading.pdf_worker SOCKET MEMORY``."""

from __future__ import annotations

import os
import pickle
import socket

from vlmbatch.errors import RowError
from vlmbatch.images.loading.protocol import receive, ref_of, send
from vlmbatch.images.loading.serving import (
    Shared,
    forget_what_was_said,
    give_way,
    serve_parent,
)
from vlmbatch.images.pdf import count_pages


def main() -> None:
    """Serve until the other end of the socket closes."""
    serve_parent(_serve)


def _serve(connection: socket.socket, _: Shared) -> None:
    limits = pickle.loads(receive(connection)[1])
    give_way()
    send(connection, {"ready": os.getpid()})
    while True:
        request, data = receive(connection)
        forget_what_was_said()
        try:
            reply: dict[str, object] = {"pages": count_pages(ref_of(request, data), limits)}
        except RowError as error:
            reply = {"code": error.code, "message": error.message}
        send(connection, reply)


if __name__ == "__main__":
    main()
