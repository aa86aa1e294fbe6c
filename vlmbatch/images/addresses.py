"""Which network addresses a server may be asked to connect to: public ones, and no others.

The networks are those of IANA's registries of special-purpose addresses (IPv4, IPv6), of multicast
and of IPv6 address space. They stand here, as what Python's ``ipaddress`` knows of them depends on
its version. Also those that the registry calls globally reachable are refused: they are services of
the network (AS112, AMT, PCP), and no web site is there.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], list[str]]  # host, port -> addresses; raises OSError, UnicodeError

# By kind; of networks within one another the first counts.
_SPECIAL_V4 = {
    "unspecified": ["0.0.0.0/32"],
    "loopback": ["127.0.0.0/8"],
    "link-local": ["169.254.0.0/16"],
    "multicast": ["224.0.0.0/4"],
    "private": [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "168.63.129.16/32",  # in no registry: Azure's, for what every machine there asks of it
    ],
    "reserved": ["240.0.0.0/4"],
}
_SPECIAL_V6 = {
    "unspecified": ["::/128"],
    "loopback": ["::1/128"],
    "link-local": ["fe80::/10"],
    "multicast": ["ff00::/8"],
    "private": [
        "64:ff9b:1::/48",  # RFC 8215: NAT64 within a network
        "100::/64",
        "100:0:0:1::/64",
        "2001::/23",
        "2001:db8::/32",
        "2620:4f:8000::/48",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fec0::/10",
    ],
}
_Networks = list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network]]
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all of IPv6 that is given out to networks
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated: as NAT64's

_MAX_LOOKUPS = 64  # at once; a name server may keep any number of them waiting
_lookups = threading.BoundedSemaphore(_MAX_LOOKUPS)


def _networks(by_kind: dict[str, list[str]]) -> _Networks:
    return [(kind, ipaddress.ip_network(text)) for kind, texts in by_kind.items() for text in texts]


_NETWORKS = {4: _networks(_SPECIAL_V4), 6: _networks(_SPECIAL_V6)}


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as text. How long that takes is the system's affair.

    Raises:
        OSError: there are none, or no name server answers.
        UnicodeError: no host can have the name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def resolve_within(seconds: float, resolve: Resolver, host: str, port: int) -> list[str]:
    """What ``resolve`` says, if it says it in time; a call that does not is left to its thread.

    Raises:
        TimeoutError: it takes longer, or the most calls allowed are under way.
        OSError, UnicodeError: as ``resolve``.
    """
    answer: list[list[str]] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            answer.append(resolve(host, port))
        except BaseException as error:  # noqa: BLE001  raised below, where it is waited for
            failure.append(error)
        finally:
            _lookups.release()
            done.set()

    deadline = time.monotonic() + seconds
    if not _lookups.acquire(timeout=seconds):
        raise TimeoutError
    # A daemon: the process can end while it waits.
    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    if not done.wait(max(0.0, deadline - time.monotonic())):
        raise TimeoutError
    if failure:
        raise failure[0]
    return answer[0]


def refusal(text: str) -> str | None:
    """What kind of address it is, if not a public one. What it holds of IPv4 is looked at too."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "malformed"
    # One that holds IPv4 addresses is as public as they are.
    each = _embedded(address) or [address]
    return next((kind for inner in each if (kind := _special(inner))), None)


def _special(address: Address) -> str | None:
    for kind, network in _NETWORKS[address.version]:
        if address in network:
            return kind
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return "reserved"
    return None


def _embedded(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]
