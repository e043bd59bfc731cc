import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.fetch.address_gate import AddressGate, is_port_allowed, is_public

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "64:ff9b::8.8.8.8"]
NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%lo",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "100::1",
    "5f00::1",
    "2001:db8::1",
    "3fff::1",
    "2001:2::1",
]
LOOPBACK_INSIDE = [
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::127.0.0.1",
    "64:ff9b:1:7f00:0:100::",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "2001:0:808:808::80ff:fffe",
    "2606:4700::5efe:127.0.0.1",
    "2606:4700::200:5efe:127.0.0.1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC + LOOPBACK_INSIDE)
def test_no_other_address_is_public_however_it_is_embedded(address):
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_as_its_nat64_and_mapped_forms(address):
    for prefix in ("64:ff9b::", "::ffff:"):
        assert is_public(prefix + str(address)) == is_public(str(address))


@given(st.ip_addresses())
def test_no_address_that_python_calls_private_is_public(address):
    if not address.is_global and (address.version == 4 or address.ipv4_mapped is None):
        assert not is_public(str(address)) or address in ipaddress.ip_network("64:ff9b::/96")


def test_networks_can_be_allowed_in_addition_to_public_addresses():
    gate = AddressGate(["10.1.0.0/16", "fd12::/16"])
    for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd12::7", "8.8.8.8"]:
        assert gate.allows(address, 80)
    for address in ["10.2.0.1", "::ffff:10.2.0.1", "fd13::7", "127.0.0.1"]:
        assert not gate.allows(address, 80)


def test_allowed_ports_are_80_443_and_those_from_1024():
    assert [port for port in (0, 22, 25, 80, 81, 443, 1023, 1024, 8080, 65535) if is_port_allowed(port)] == [
        80,
        443,
        1024,
        8080,
        65535,
    ]
    assert not AddressGate(["127.0.0.0/8"]).allows("127.0.0.1", 22)


def test_the_error_names_an_invalid_network():
    with pytest.raises(ValueError, match="'10.0.0.1/8' is not a network in CIDR notation"):
        AddressGate(["10.0.0.1/8"])
