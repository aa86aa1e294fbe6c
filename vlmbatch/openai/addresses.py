"""Which network addresses a server may be asked to connect to: public ones, and no others."""

from __future__ import annotations

import ipaddress
import socket

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: for use within a network
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated: as NAT64's

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as text. How long that takes is the system's affair.

    Raises:
        OSError: there are none, or no name server answers.
        UnicodeError: no host can have the name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def refusal(text: str) -> str | None:
    """What kind of address it is, if not a public one; an address within another is looked at too.

    The kinds are those of the IANA registries of special-purpose addresses, as ``ipaddress`` has
    them.
    """
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "malformed"
    for inner in (address, *_embedded(address)):
        if kind := _kind(inner):
            return kind
    return None


def _kind(address: Address) -> str | None:
    if address.is_unspecified:
        return "unspecified"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if isinstance(address, ipaddress.IPv6Address) and (
        address.is_site_local or address in _LOCAL_NAT64
    ):
        return "private"
    if address.is_reserved and not _is_wrapper(address):
        return "reserved"
    if not address.is_global and not _is_wrapper(address):
        return "private"
    return None


def _is_wrapper(address: Address) -> bool:
    """Whether it is as public as the IPv4 address in it."""
    return isinstance(address, ipaddress.IPv6Address) and bool(_embedded(address))


def _embedded(address: Address) -> list[ipaddress.IPv4Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]
