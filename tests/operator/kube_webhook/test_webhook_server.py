"""The webhook over HTTPS, and a certificate that is replaced under it."""

import asyncio
import json
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from kopf_webhook import kopf_webhook

from hmi_operator.kubernetes.webhook import AdmissionReviewer, WebhookAddress, serve_reviews

pytestmark = pytest.mark.anyio
_PATH = "/validate-domains"
ANSWER = kopf_webhook(AdmissionReviewer(lambda _: None))
DELETION = {
    "uid": "u1",
    "operation": "DELETE",
    "userInfo": {},
    "resource": {"group": "hmi.dev", "version": "v1alpha1", "resource": "domains"},
    "oldObject": {"kind": "Domain", "metadata": {"name": "hotel", "namespace": "shop", "uid": "u"}},
}
REFUSED = DELETION | {
    "operation": "CREATE",
    "object": {"kind": "Domain", "metadata": {"name": "hotel"}, "spec": {}},
}


def issue(folder: Path) -> ssl.SSLContext:
    """Write a certificate of a new authority; return a TLS context that trusts it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    for name, blob in (("tls.crt", certificate.cert_chain_pems[0]), ("tls.key", certificate.private_key_pem)):
        blob.write_to_path(str(folder / f"{name}.new"))
        (folder / f"{name}.new").replace(folder / name)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return trusting


async def answered(port: int, trusting: ssl.SSLContext, content: bytes) -> httpx.Response:
    async with httpx.AsyncClient(verify=trusting) as client:
        return await client.post(f"https://127.0.0.1:{port}{_PATH}", content=content)


def address(folder: Path) -> WebhookAddress:
    return WebhookAddress(folder / "tls.crt", folder / "tls.key", host="127.0.0.1", port=0)


async def test_a_review_is_answered_and_an_invalid_body_is_refused(tmp_path: Path) -> None:
    trusting = issue(tmp_path)
    async with serve_reviews(address(tmp_path), ANSWER) as port:
        answer = await answered(port, trusting, json.dumps({"request": DELETION}).encode())
        assert answer.json()["response"] == {"uid": "u1", "allowed": True}
        answer = await answered(port, trusting, json.dumps({"request": REFUSED}).encode())
        status = answer.json()["response"]["status"]
        assert (status["code"], status["reason"]) == (422, "Invalid")
        assert "spec.baseModel" in status["message"]
        for nonsense in (b"{", b"{}", b'{"request": {}}', b"[]", b"null", b"\xff", b"[" * 100_000):
            assert (await answered(port, trusting, nonsense)).status_code == 400


async def test_a_replaced_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    issue(tmp_path)
    async with serve_reviews(address(tmp_path), ANSWER, certificate_seconds=0.01) as port:
        (tmp_path / "tls.crt").write_text("half a certif")
        await asyncio.sleep(0.05)  # long enough to be met half written
        trusting = issue(tmp_path)
        await _until_trusted(port, trusting)


async def test_the_server_does_not_start_without_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        async with serve_reviews(address(tmp_path), ANSWER):
            pass


async def _until_trusted(port: int, trusting: ssl.SSLContext) -> None:
    for _ in range(1000):
        if await _is_trusted(port, trusting):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the new certificate was never served")


async def _is_trusted(port: int, trusting: ssl.SSLContext) -> bool:
    try:
        await answered(port, trusting, b"{}")
    except httpx.ConnectError:
        return False
    return True
