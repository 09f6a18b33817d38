"""The NetworkPolicy of training pods: where they may connect to, in each namespace in which they run.

The trainer checks the addresses that it is given (``hmi_runtime.outbound``); the policy applies whatever the
process does. Both follow ``hmi_api.security.address_policy``, from the same tables. A
NetworkPolicy knows no names: a host that is listed by name needs its network listed too, or an egress rule of
its own if it is a pod.
"""

import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from cachetools import TTLCache

from hmi_api.security.address_policy import NAT64, PUBLIC_V6, Network, not_public
from hmi_operator.kubernetes.client import ApiServerConflict, KubernetesClient, Manifest, find
from hmi_operator.kubernetes.jobs.naming import COMPONENT, MANAGED_BY, TRAINER
from hmi_operator.kubernetes.jobs.settings import TrainerSettings

BELIEVED_SECONDS = 60.0
"""How long a policy that was read is assumed to be unchanged."""
_REMEMBERED = 10_000
_DNS_PORT = 53
_INSTANCE = "app.kubernetes.io/instance"


def policy_name(settings: TrainerSettings) -> str:
    """Return the policy's name in every namespace."""
    return f"{settings.trainer_instance}-training"


def build_network_policy(namespace: str, settings: TrainerSettings) -> Manifest:
    """Return the policy of a namespace's training pods.

    They may use DNS, and connect to the control plane, to public addresses and to what the installation
    lists. Nothing may connect to them.
    """
    labels = {_INSTANCE: settings.trainer_instance, COMPONENT: TRAINER}
    own_namespace = {"kubernetes.io/metadata.name": settings.namespace}
    control_plane = {
        "namespaceSelector": {"matchLabels": own_namespace},
        "podSelector": {"matchLabels": {_INSTANCE: settings.trainer_instance, COMPONENT: "control-plane"}},
    }
    egress: list[dict[str, Any]] = [
        {"ports": [{"port": _DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]},
        {"to": [control_plane], "ports": [{"port": "http", "protocol": "TCP"}]},
        {"to": _public_blocks(settings.data_cluster_networks)},
    ]
    if settings.data_allowed_networks:
        egress.append({"to": [_block(network) for network in settings.data_allowed_networks]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": policy_name(settings),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/name": "hmi",
                "app.kubernetes.io/part-of": "hmi",
                MANAGED_BY: "hmi-operator",
                **labels,
            },
        },
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress", "Egress"],
            "egress": [*egress, *settings.trainer_egress],
        },
    }


class TrainingNetwork:
    """Keeps the policy in each namespace in which Jobs are created."""

    def __init__(
        self,
        client: KubernetesClient,
        settings: TrainerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = client.custom_objects
        self._settings = settings
        self._believed: TTLCache[str, None] = TTLCache(_REMEMBERED, BELIEVED_SECONDS, timer=clock)

    async def ensure(self, namespace: str) -> None:
        """Create or update a namespace's policy, if the installation wants one.

        Raises ``ApiServerError`` if the operator may not: no Job must be created then.
        """
        if not self._settings.trainer_network_policy or namespace in self._believed:
            return
        wanted = build_network_policy(namespace, self._settings)
        name = policy_name(self._settings)
        kind = ("networking.k8s.io", "v1", namespace, "networkpolicies")
        present: Any = await find(self._api.get_namespaced_custom_object(*kind, name))
        try:
            if present is None:
                await self._api.create_namespaced_custom_object(*kind, wanted)
            elif present["spec"] != wanted["spec"]:
                wanted["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"]
                await find(self._api.replace_namespaced_custom_object(*kind, name, wanted))
        except ApiServerConflict as conflict:
            if conflict.reason != "AlreadyExists":  # another replica was faster
                raise
        self._believed[namespace] = None


def _public_blocks(cluster_networks: Iterable[Network]) -> list[dict[str, Any]]:
    everything = IPv4Network("0.0.0.0/0")
    closed_v4 = [*not_public(4), *(network for network in cluster_networks if network.version == 4)]
    closed_v6 = [*not_public(6), *(network for network in cluster_networks if network.version == 6)]
    translated = [_translated(network) for network in closed_v4 if isinstance(network, IPv4Network)]
    return [_block(everything, closed_v4), _block(PUBLIC_V6, closed_v6), _block(NAT64, translated)]


def _translated(network: IPv4Network) -> IPv6Network:
    """Return where NAT64 shows a block of IPv4 addresses."""
    first = int(NAT64.network_address) + int(network.network_address)
    return IPv6Network((first, NAT64.prefixlen + network.prefixlen))


def _block(network: Network, closed: Iterable[Network] = ()) -> dict[str, Any]:
    within = [
        str(inner)
        for inner in closed
        if inner.version == network.version and inner != network and inner.subnet_of(network)  # type: ignore[arg-type] # of one version
    ]
    return {"ipBlock": {"cidr": str(network), "except": within} if within else {"cidr": str(network)}}
