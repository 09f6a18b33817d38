"""The NetworkPolicy of training pods, by the pods that it selects and the connections that it allows."""

import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from kube_models import as_json

from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import DomainRunSpec, RunView
from hmi_api.security.address_policy import NAT64, AddressPolicy, Ip, is_public, not_public
from hmi_operator.kubernetes.jobs import TrainerSettings
from hmi_operator.kubernetes.jobs.naming import labels_of
from hmi_operator.kubernetes.jobs.network import build_network_policy

SETTINGS = TrainerSettings(
    trainer_image="hmi/runtime:1",
    control_plane_url="http://hmi-control-plane.hmi-system.svc",
    trainer_instance="hmi",
    namespace="hmi-system",
)
LISTED = SETTINGS.model_copy(
    update={
        "data_allowed_networks": (ip_network("10.7.0.0/16"), ip_network("fd00:7::/32")),
        "data_cluster_networks": (ip_network("8.8.8.0/24"), ip_network("2600:1::/32")),
        "trainer_egress": (
            {"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "minio"}}}]},
        ),
    }
)
OF_THE_INSIDE = [
    "169.254.169.254",
    "127.0.0.1",
    "10.96.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "fe80::1",
    "fd00:ec2::254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::a00:1",
    "2002:a00:1::",
    "ff02::1",
]
OF_THE_OUTSIDE = ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::101:101"]


def _spec(settings: TrainerSettings = SETTINGS) -> dict[str, Any]:
    spec: dict[str, Any] = as_json(build_network_policy("shop", settings))["spec"]
    return spec


def _lets_through(spec: dict[str, Any], address: Ip) -> bool:
    """Say whether a rule without ports has a block with this address."""
    return any(
        address.version == ip_network(peer["ipBlock"]["cidr"]).version
        and address in ip_network(peer["ipBlock"]["cidr"])
        and not any(address in ip_network(inner) for inner in peer["ipBlock"].get("except", []))
        for rule in spec["egress"]
        if "ports" not in rule
        for peer in rule["to"]
        if "ipBlock" in peer
    )


def test_the_policy_selects_only_training_pods_of_its_installation() -> None:
    spec = DomainRunSpec.model_construct(kind="domain", namespace="shop", name="orders")
    run = RunView.model_construct(id="run", uid="uid", spec=spec)
    selector = _spec()["podSelector"]["matchLabels"]

    assert selector.items() <= labels_of(run, "hmi").items()
    assert not selector.items() <= labels_of(run, "another").items()
    assert not selector.items() <= {"app": "of-the-tenant"}.items()


def test_nothing_may_connect_to_training_pods() -> None:
    assert _spec()["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in _spec()


def test_dns_and_the_control_plane_are_allowed() -> None:
    names, control_plane, *_ = _spec()["egress"]

    assert names == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    (peer,) = control_plane["to"]
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "hmi-system"}}
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "control-plane"
    assert control_plane["ports"] == [{"port": "http", "protocol": "TCP"}]


@pytest.mark.parametrize("address", OF_THE_INSIDE)
def test_internal_addresses_are_blocked(address: str) -> None:
    assert not _lets_through(_spec(), ip_address(address))


@pytest.mark.parametrize("address", OF_THE_OUTSIDE)
def test_public_addresses_are_allowed(address: str) -> None:
    assert _lets_through(_spec(), ip_address(address))


def test_networks_that_the_installation_lists_are_opened_or_closed() -> None:
    spec = _spec(LISTED)

    for address in ("10.7.1.1", "fd00:7::1", "1.1.1.1"):
        assert _lets_through(spec, ip_address(address)), address
    for address in ("10.8.1.1", "8.8.8.8", "2600:1::1", "64:ff9b::808:808"):
        assert not _lets_through(spec, ip_address(address)), address
    assert spec["egress"][-1] == LISTED.trainer_egress[0]


def test_exceptions_are_within_their_blocks() -> None:
    for rule in _spec(LISTED)["egress"]:
        for peer in rule.get("to", []):
            block = peer.get("ipBlock", {})
            for inner in block.get("except", []):
                outer = ip_network(block["cidr"])
                assert ip_network(inner).prefixlen > outer.prefixlen
                assert ip_network(inner).network_address in outer


def test_policy_and_process_agree_on_every_address() -> None:
    """Both are made from the same tables; random addresses, and both ends of every table's entries."""
    policy = AddressPolicy(
        allowed_networks=LISTED.data_allowed_networks, cluster_networks=LISTED.data_cluster_networks
    )
    chance = random.Random(31)  # noqa: S311 -- the same in every run
    tried: list[Ip] = [IPv4Address(chance.getrandbits(32)) for _ in range(2_000)]
    tried += [IPv6Address(chance.getrandbits(128)) for _ in range(500)]
    tried += [IPv6Address(int(NAT64.network_address) + chance.getrandbits(32)) for _ in range(500)]
    tried += [IPv6Address((0x2 << 124) + chance.getrandbits(125)) for _ in range(500)]
    for network in (*not_public(4), *not_public(6), *LISTED.data_allowed_networks):
        tried += [network.network_address, network.broadcast_address]
    spec = _spec(LISTED)

    for address in tried:
        assert _lets_through(spec, address) == policy.allows(address), address


def test_public_addresses_are_those_of_the_registries() -> None:
    chance = random.Random(32)  # noqa: S311 -- the same in every run
    for _ in range(5_000):
        address = IPv4Address(chance.getrandbits(32))
        if is_public(address):
            assert address.is_global, address
            assert not address.is_multicast, address
    for _ in range(5_000):
        wide = IPv6Address(chance.getrandbits(128))
        if is_public(wide):
            assert wide.is_global, wide


def test_a_listed_network_allows_only_its_own_addresses() -> None:
    policy = AddressPolicy(allowed_networks=(ip_network("10.7.0.0/16"),))

    policy.check_host("10.7.0.1")
    with pytest.raises(InvalidInput):
        policy.check_host("10.8.0.1")
    with pytest.raises(InvalidInput):  # names of the cluster's own are not opened by a network
        policy.check_host("minio.minio.svc")
