"""Decide which addresses may be connected to: public ones, and those of networks that the user allows."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from diptych.errors import UserError

LOWEST_FREE_PORT = 1024
WEB_PORTS = frozenset({80, 443})
"""The only ports allowed below 1024: the other services there (mail, SSH) serve no pictures."""

# `ipaddress` counts multicast, 192.0.0.192 (a cloud's metadata), NAT64 and 6to4 as global, so we keep our own lists.
_NOT_PUBLIC_4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host services, at an address that looks public
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
]
_PUBLIC_6 = IPv6Network("2000::/3")  # all public addresses are in this block
_NOT_PUBLIC_6 = [IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_IPV4_IN_LAST_BITS = [
    IPv6Network(network)
    for network in (
        "::/96",  # compatible
        "::ffff:0:0/96",  # mapped
        "::ffff:0:0:0/96",  # translated (RFC 2765)
        "64:ff9b::/96",  # NAT64: how a network without IPv4 reaches IPv4 hosts
    )
]
_ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of its interface identifier


def is_public(address: str) -> bool:
    """Whether the address, and every IPv4 address embedded in it, belongs to the public internet.

    Mapped and NAT64 addresses are as public as the IPv4 address in them. Teredo, 6to4 (deprecated by RFC 7526), the
    local NAT64 prefix 64:ff9b:1::/48 and all other addresses outside 2000::/3 are never public.
    """
    return _is_public(ip_address(address))


class AddressGate:
    """Decides which addresses and ports may be connected to."""

    def __init__(self, allow_networks: Iterable[str] = ()):
        """Allow these networks in addition to public addresses; `parse_networks` reads each of them.

        Raises:
            UserError: one of them is not a network.
        """
        self._allowed = [network for text in allow_networks for network in parse_networks(text)]

    def allows(self, address: str, port: int) -> bool:
        if not is_port_allowed(port):
            return False
        parsed = ip_address(address)
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._allowed) or _is_public(parsed)


def parse_networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Read a network in CIDR notation, or `localhost`, which means the loopback networks of IPv4 and IPv6.

    Raises:
        UserError: the text is neither.
    """
    if text.lower() == "localhost":
        return [IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")]
    try:
        return [ip_network(text)]
    except ValueError as error:
        message = f"{text!r} is not a network in CIDR notation such as 10.1.0.0/16, nor localhost ({error})"
        raise UserError(message) from None


def is_port_allowed(port: int) -> bool:
    return port in WEB_PORTS or LOWEST_FREE_PORT <= port <= 65535


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_4)
    embedded = _embedded(address)
    if embedded is not None and not _is_public(embedded):
        return False
    if any(address in network for network in _IPV4_IN_LAST_BITS):
        return True
    return address.is_global and address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    bits = int(address)
    if any(address in network for network in _IPV4_IN_LAST_BITS):
        return IPv4Address(bits & 0xFFFFFFFF)
    if bits >> 32 & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(bits & 0xFFFFFFFF)
    return None
