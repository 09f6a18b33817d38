"""A real API server calls the webhook; ``kubectl apply`` prints its rejections."""

import asyncio
import base64
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import kopf
import pytest
import trustme
import yaml
from kube_server import KubeServer

from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.handlers import build_registry, build_settings
from hmi_operator.kubernetes.webhook import AdmissionReviewer, WebhookAddress, webhook_server

pytestmark = pytest.mark.anyio
_NAME = "webhook-called"
_STOP_SECONDS = 30.0
_DOMAIN = {
    "apiVersion": "hmi.dev/v1alpha1",
    "kind": "Domain",
    "metadata": {"name": "hotel", "namespace": _NAME},
    "spec": {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": "s3://bucket/rows"}]},
}


@pytest.fixture
async def called(kubeconfig: KubeServer, tmp_path: Path) -> AsyncIterator[KubeServer]:
    """An API server that calls this process's webhook for Domains of one namespace."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = WebhookAddress(tmp_path / "tls.crt", tmp_path / "tls.key", host="127.0.0.1", port=port)
    kube = kubeconfig
    kube.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAME}},
        _configuration(f"https://127.0.0.1:{port}/validate-domains", authority.cert_pem.bytes()),
    )
    # A loop of its own: where kopf ends, it cancels every task that began after it, those of pytest too.
    stop = threading.Event()
    running = threading.Thread(
        target=kopf.run,
        kwargs={
            "registry": build_registry(ResourceCache(), AdmissionReviewer(lambda _: None)),
            "settings": build_settings(webhook_server(address)),
            "standalone": True,
            "namespaces": [_NAME],
            "stop_flag": stop,
        },
    )
    running.start()
    yield kube
    await asyncio.to_thread(kube.kubectl, "delete", "validatingwebhookconfiguration", _NAME)
    stop.set()
    await asyncio.to_thread(running.join, _STOP_SECONDS)
    assert not running.is_alive()


async def test_kubectl_apply_shows_what_to_do(called: KubeServer) -> None:
    relative = _DOMAIN | {"spec": {**_DOMAIN["spec"], "corpus": [{"uri": "data/rows.txt"}]}}  # type: ignore[dict-item]
    said = await _until_called(called, relative)
    assert "spec.corpus[0].uri is data/rows.txt" in said
    assert "configmap://NAME/KEY" in said
    child = _DOMAIN | {"spec": {**_DOMAIN["spec"], "parentRef": {"name": "desk"}}}  # type: ignore[dict-item]
    assert "Warning: There is no Domain webhook-called/desk" in await _applied(called, child)
    assert "deleted" in await asyncio.to_thread(
        called.kubectl, "-n", _NAME, "delete", "domain", "hotel", "--wait=false"
    )


async def _until_called(kube: KubeServer, body: dict[str, Any]) -> str:
    """Apply without keeping until the API server has taken notice of the webhook."""
    for _ in range(100):
        said = await _applied(kube, body, "--dry-run=server")
        if "denied the request" in said:
            return said
    raise AssertionError("the webhook was never called")


async def _applied(kube: KubeServer, body: dict[str, Any], *flags: str) -> str:
    return await asyncio.to_thread(
        kube.kubectl, "apply", "-f", "-", *flags, stdin=yaml.safe_dump(body), check=False
    )


def _configuration(url: str, authority: bytes) -> dict[str, Any]:
    rule = {
        "apiGroups": ["hmi.dev"],
        "apiVersions": ["v1alpha1"],
        "resources": ["domains"],
        "operations": ["CREATE", "UPDATE", "DELETE"],
    }
    webhook = {
        "name": "domains.hmi.dev",
        "clientConfig": {"url": url, "caBundle": base64.b64encode(authority).decode()},
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": _NAME}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": _NAME},
        "webhooks": [webhook],
    }
