"""The HTTPS server that the API server asks, with a certificate that may be replaced at any time."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from hmi_api.servers import listening_socket
from hmi_operator.kubernetes.webhook.review import MalformedReview, Reviewer

logger = logging.getLogger(__name__)

PATHS = ("/validate-domains", "/validate-taskadapters")
LARGEST_REVIEW_BYTES = 8 * 1024 * 1024
"""Two objects of the largest size that an API server keeps, and what is around them."""
CERTIFICATE_SECONDS = 10.0
"""How often the certificate's files are looked at; the kubelet takes longer to bring a new one."""


@dataclass(frozen=True)
class WebhookAddress:
    """Where the server listens, and the PEM files of its certificate and key."""

    certificate: Path
    key: Path
    host: str = "::"
    port: int = 9443


@asynccontextmanager
async def serving_webhook(
    address: WebhookAddress, reviewer: Reviewer, *, certificate_seconds: float = CERTIFICATE_SECONDS
) -> AsyncIterator[int]:
    """Serve while the block runs; gives the port, which matters where 0 was asked for.

    Raises ``OSError`` (``ssl.SSLError`` among it) when the certificate cannot be read to begin with.
    """
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    seen = _load(tls, address)
    runner = web.AppRunner(_application(reviewer), access_log=None)
    await runner.setup()
    renewing = asyncio.create_task(
        _renew(tls, address, seen, certificate_seconds), name="webhook certificate"
    )
    try:
        site = web.SockSite(runner, listening_socket(address.host, address.port), ssl_context=tls)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        renewing.cancel()
        await asyncio.wait({renewing})
        await runner.cleanup()


def _application(reviewer: Reviewer) -> web.Application:
    async def validate(request: web.Request) -> web.Response:
        try:
            answer = reviewer.answer(await request.json())
        except (ValueError, RecursionError) as error:  # no JSON, too deep, or no review
            what = str(error) if isinstance(error, MalformedReview) else "the body is not JSON"
            return web.Response(text=what, status=400)
        return web.json_response(answer)

    application = web.Application(client_max_size=LARGEST_REVIEW_BYTES)
    for path in PATHS:
        application.router.add_post(path, validate)
    return application


async def _renew(tls: ssl.SSLContext, address: WebhookAddress, seen: object, seconds: float) -> None:
    """Take a new certificate for new connections when its files change; those that are open stay."""
    while True:
        await asyncio.sleep(seconds)
        try:
            if _stamp(address) != seen:
                seen = _load(tls, address)
                logger.info("the webhook's certificate was replaced")
        except OSError as error:  # half written, or away for a moment; the old one serves on
            logger.warning("the webhook's new certificate cannot be read yet: %s", error)


def _load(tls: ssl.SSLContext, address: WebhookAddress) -> object:
    # Looked at before it is read: what changes in between is then read again.
    seen = _stamp(address)
    tls.load_cert_chain(address.certificate, address.key)
    return seen


def _stamp(address: WebhookAddress) -> object:
    return tuple((file.stat().st_mtime_ns, file.stat().st_ino) for file in (address.certificate, address.key))
