"""Which addresses are public."""

from __future__ import annotations

import ipaddress
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.images.addresses import refusal, resolve_within


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.0.3", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("::7f00:1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("198.18.0.1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::a00:1", "private"),
        ("64:ff9b:1::a00:1", "private"),
        ("2002:a00:1::", "private"),
        ("fc00::1", "private"),
        ("fd12:3456::1", "private"),
        ("fec0::1", "private"),
        ("2001:db8::1", "private"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("0.255.0.1", "private"),
        ("192.0.0.9", "private"),
        ("192.0.0.192", "private"),
        ("192.0.2.1", "private"),
        ("192.31.196.1", "private"),
        ("192.52.193.1", "private"),
        ("192.88.99.1", "private"),
        ("192.175.48.1", "private"),
        ("198.51.100.1", "private"),
        ("203.0.113.1", "private"),
        ("168.63.129.16", "private"),
        ("::ffff:168.63.129.16", "private"),
        ("2002:c058:6301::", "private"),
        ("239.255.255.255", "multicast"),
        ("100::1", "private"),
        ("100:0:0:1::1", "private"),
        ("2001:1::1", "private"),
        ("2001:2::1", "private"),
        ("2001:20::1", "private"),
        ("2001:4:112::1", "private"),
        ("2620:4f:8000::1", "private"),
        ("3fff::1", "private"),
        ("3fff:fff:ffff::1", "private"),
        ("5f00::1", "private"),
        ("::ffff:0:127.0.0.1", "reserved"),
        ("4000::1", "reserved"),
        ("fe00::1", "reserved"),
        ("localhost", "malformed"),
        ("0x7f.1", "malformed"),
    ],
)
def test_refused(address: str, kind: str) -> None:
    assert refusal(address) == kind


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "172.32.0.1", "192.0.1.1", "192.88.98.1", "168.63.129.15", "223.255.255.255"),
        *("2606:4700::1111", "2001:200::1", "2a00::1", "3fff:1000::1", "3ffe::1"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    ],
)
def test_public(address: str) -> None:
    assert refusal(address) is None


@settings(deadline=None)
@given(st.ip_addresses())
def test_what_python_knows_not_to_be_public_is_refused(address: ipaddress.IPv6Address) -> None:
    holds_another = address.version == 6 and (
        address.ipv4_mapped or address.sixtofour or address.teredo or int(address) >> 32 == 0
    )
    if not address.is_global and not holds_another:
        assert refusal(str(address)) is not None


def test_a_name_server_that_does_not_answer_is_waited_for_no_longer() -> None:
    ended = threading.Event()

    def silent(host: str, port: int) -> list[str]:
        ended.wait(30)
        return []

    try:
        with pytest.raises(TimeoutError):
            resolve_within(0.01, silent, "a.example", 80)
    finally:
        ended.set()
    assert resolve_within(30, lambda host, port: [host, str(port)], "a", 80) == ["a", "80"]


@pytest.mark.parametrize("failure", [OSError("no such host"), SystemExit(3)])
def test_what_a_lookup_raises_is_raised_to_who_asked(failure: BaseException) -> None:
    def failing(host: str, port: int) -> list[str]:
        raise failure

    with pytest.raises(type(failure)) as raised:
        resolve_within(30, failing, "a.example", 80)
    assert raised.value is failure


def test_lookups_that_hang_do_not_pile_up() -> None:
    ended, lock, num_begun = threading.Event(), threading.Lock(), 0

    def silent(host: str, port: int) -> list[str]:
        nonlocal num_begun
        with lock:
            num_begun += 1
        ended.wait(30)
        return []

    try:
        for _ in range(70):
            with pytest.raises(TimeoutError):
                resolve_within(0.001, silent, "a.example", 80)
        assert num_begun <= 64
    finally:
        ended.set()
    assert resolve_within(30, lambda host, port: [host], "a", 80) == ["a"]


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_a_wrapped_address_is_as_the_one_in_it(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for wrapped in (
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
    ):
        assert (refusal(str(wrapped)) is None) == (refusal(str(address)) is None)
