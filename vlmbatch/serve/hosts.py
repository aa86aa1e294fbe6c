"""Who a browser may take the server for, where nothing but its address keeps strangers out.

A web page can give its own name the address 127.0.0.1 (DNS rebinding); the browser then counts this
server as part of the page's site, and lets it read answers. The request's Host header still has the
page's name. Where a key is asked for, or the server listens to other machines anyway, nothing is
checked: proxies and other names keep working.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vlmbatch.openai.errors import ApiError
from vlmbatch.serve.errors import error_response

# RFC 6761 keeps "localhost" for this machine, and ICANN "internal" for private networks: nobody can
# have a site there. ("host.docker.internal" is how containers call their host.)
_PRIVATE_DOMAINS = ("localhost", "internal")


def is_loopback(address: str) -> bool:
    """Whether a socket's address can be reached from this machine alone."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class CheckHost:
    """Refuses requests whose Host header is a name that somebody's web site may have.

    ``own_name``: the name that the server was told to listen on, which is none of those.
    """

    def __init__(self, app: ASGIApp, own_name: str) -> None:
        self._app = app
        self._own_name = own_name.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "")
        if self._is_ours(_name_of(host)):
            await self._app(scope, receive, send)
            return
        message = (
            f"the server is called {host!r:.200} here, and without an API key it answers to "
            "localhost and addresses only, lest a web page reach it through its own name: set "
            "--api-key, or have the proxy send the header Host: localhost"
        )
        refusal = ApiError(403, message, code="host_forbidden")
        await error_response(refusal)(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        # No browser sends none; and no page has a name that is an address.
        return (
            name in ("", self._own_name)
            or name.rpartition(".")[2] in _PRIVATE_DOMAINS
            or _is_address(name)
        )


def _name_of(host: str) -> str:
    """The host of a Host header, without its port and the dot that may end a name."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
