"""Addresses as they are written in the settings, and who is at the ends of a connection."""

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold.address import Address, Endpoint


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:80", "tcp://[::]:0", "tcp://example.org:65535", "unix:///run/x.sock", "systemd://main"])
def test_addresses(text: str) -> None:
    """An address is written as it was read."""
    assert str(Address.parse(text)) == text
    assert Address.parse(text) == Address.parse(text)


@given(st.text(max_size=30) | st.builds("tcp://{}".format, st.text(max_size=20)))
def test_no_address_breaks_the_parser(text: str) -> None:
    """Anything is an address or a ValueError that shows it or says what is right."""
    try:
        Address.parse(text)
    except ValueError as error:
        assert len(str(error)) > 10


def test_endpoints() -> None:
    """An IPv4 client of a dual-stack listener is an IPv4 client."""
    assert str(Endpoint.of(socket.AF_INET6, ("::ffff:192.0.2.7", 80, 0, 0))) == "192.0.2.7:80"
    assert str(Endpoint.of(socket.AF_INET6, ("2001:db8::1", 80, 0, 0))) == "[2001:db8::1]:80"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert str(Endpoint.unix_peer(ours)) == f"unix:uid={os.getuid()},pid={os.getpid()}"
