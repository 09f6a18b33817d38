"""The validating webhook: rejects at ``kubectl apply`` what the planner would reject afterwards.

kopf parses the reviews and calls the handlers in ``handlers``; here are their decisions and the HTTPS
server. The rules are ``hmi_operator.admission``'s; the planner applies them too, where no webhook was called.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web
from pydantic import ValidationError

from hmi_api.names import KindName
from hmi_api.resources.kinds import KINDS, Resource
from hmi_api.resources.manifests import explained
from hmi_operator.admission import AdmissionDecision, Find, decide_admission
from hmi_operator.kubernetes.observability import serve_application
from hmi_operator.planning import CLUSTER, Environment

logger = logging.getLogger(__name__)

PATHS = ("/validate-domains", "/validate-taskadapters")
LARGEST_REVIEW_BYTES = 8 * 1024 * 1024
"""Two objects of the largest size that an API server stores, and what is around them."""
CERTIFICATE_SECONDS = 10.0
"""How often the certificate's files are checked; the kubelet takes longer to update them."""
UNPROCESSABLE = 422


@dataclass(frozen=True)
class AdmissionReviewer:
    """Decides whether an object may be created or updated."""

    find: Find
    problem: Callable[[], str | None] = lambda: None
    """Returns why the cache is not complete, or None. While it is not, no object is rejected because of
    others: the planner validates again."""
    environment: Environment = CLUSTER

    def review(self, new_body: Mapping[str, Any], old_body: Mapping[str, Any] | None) -> AdmissionDecision:
        """Return why the new object is rejected, if it is, and warnings."""
        if new_body.get("metadata", {}).get("deletionTimestamp") is not None:
            return AdmissionDecision()
        try:
            new = _parse(new_body)
        except ValidationError as error:  # the API server has another version of the CRDs
            return AdmissionDecision(explained(error))
        try:
            old = _parse(old_body) if old_body is not None else None
        except ValidationError:  # created under weaker rules; its correction must be possible
            old = None
        problem = self.problem()
        if problem is None:
            return decide_admission(new, old, self.find, self.environment)
        alone = decide_admission(new, old, lambda _: None, self.environment)
        return AdmissionDecision(alone.rejection, (f"Not checked against other resources: {problem}.",))


def _parse(body: Mapping[str, Any]) -> Resource:
    """Return the resource in an object without its status, which users do not write.

    The API server has validated it by the CRD's schema already. Raises ``ValidationError``.
    """
    kind: KindName = body["kind"]
    return KINDS[kind].type.model_validate({name: value for name, value in body.items() if name != "status"})


@dataclass(frozen=True)
class WebhookAddress:
    """Where the server listens, and the PEM files of its certificate and key."""

    certificate: Path
    key: Path
    host: str = "::"
    port: int = 9443


def webhook_server(address: WebhookAddress) -> kopf.WebhookServerProtocol:
    """Return the server for kopf's ``settings.admission.server``."""

    async def serve(call: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        async with serve_reviews(address, call):
            yield kopf.WebhookClientConfig()
            await asyncio.Event().wait()

    return serve


@asynccontextmanager
async def serve_reviews(
    address: WebhookAddress, call: kopf.WebhookFn, *, certificate_seconds: float = CERTIFICATE_SECONDS
) -> AsyncIterator[int]:
    """Serve while the block runs; yields the port. ``call`` is kopf's function that answers a review.

    A renewed certificate is loaded for new connections, without closing those that are open. Raises
    ``OSError`` (``ssl.SSLError`` among it) when the certificate cannot be read at the start.
    """
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    loaded = _load(tls, address)
    renewing = asyncio.create_task(
        _renew(tls, address, loaded, certificate_seconds), name="webhook certificate"
    )
    try:
        async with serve_application(_application(call), address.host, address.port, tls=tls) as port:
            yield port
    finally:
        renewing.cancel()
        await asyncio.wait({renewing})


def _application(call: kopf.WebhookFn) -> web.Application:
    async def validate(request: web.Request) -> web.Response:
        try:
            review = await request.json()
        except (ValueError, RecursionError):
            return web.Response(text="the body is not JSON", status=400)
        if not _is_review(review):
            return web.Response(text="the body is no AdmissionReview with a request and its uid", status=400)
        answer: Any = await call(review)
        status = answer["response"].get("status", {})
        if status.get("code") == UNPROCESSABLE:
            status["reason"] = "Invalid"
        return web.json_response(answer)

    application = web.Application(client_max_size=LARGEST_REVIEW_BYTES)
    for path in PATHS:
        application.router.add_post(path, validate)
    return application


def _is_review(review: Any) -> bool:
    request = review.get("request") if isinstance(review, Mapping) else None
    return isinstance(request, Mapping) and isinstance(request.get("uid"), str)


async def _renew(tls: ssl.SSLContext, address: WebhookAddress, loaded: object, seconds: float) -> None:
    """Take a new certificate for new connections when its files change; those that are open stay."""
    while True:
        await asyncio.sleep(seconds)
        try:
            if _file_state(address) != loaded:
                loaded = _load(tls, address)
                logger.info("the webhook's certificate was replaced")
        except OSError as error:  # half written or absent for a moment; the old one stays in use
            logger.warning("the webhook's new certificate cannot be read yet: %s", error)


def _load(tls: ssl.SSLContext, address: WebhookAddress) -> object:
    # Read before the files are: a change in between is then loaded again.
    state = _file_state(address)
    tls.load_cert_chain(address.certificate, address.key)
    return state


def _file_state(address: WebhookAddress) -> object:
    return tuple((file.stat().st_mtime_ns, file.stat().st_ino) for file in (address.certificate, address.key))
