"""Additional certificate authorities, with a TLS server of an authority in ``HMI_CA_CERTIFICATES``."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import certifi
import pytest
import trustme

from hmi_api.security.ca_certificates import BUNDLE_VARIABLES, VARIABLE

PROGRAM = """
import asyncio, ssl, sys
import aiohttp  # it makes its TLS context as it is imported
import httpx
from hmi_api.security.ca_certificates import trust_ca_certificates
trust_ca_certificates()
url = sys.argv[1]
print("authorities", len(ssl.create_default_context().get_ca_certs()))
print("httpx", httpx.get(url).text)

async def ask():
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        print("aiohttp", await answer.text())

asyncio.run(ask())
"""


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_url(authority: trustme.CA) -> Iterator[str]:
    """The address of a server on loopback with a certificate of ``authority``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hello) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"https://localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)


def _ask(url: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in BUNDLE_VARIABLES}
    environment |= {"NO_PROXY": "*"} | variables
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, url],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_authority_is_trusted_in_addition_to_the_usual_ones(tls_url: str, authority: trustme.CA) -> None:
    done = _ask(tls_url, **{VARIABLE: authority.cert_pem.bytes().decode()})

    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    usual = len(ssl.create_default_context(cafile=certifi.where()).get_ca_certs())
    assert said == [f"authorities {usual + 1}", "httpx hello", "aiohttp hello"]


def test_without_the_authority_the_server_is_not_trusted(tls_url: str) -> None:
    done = _ask(tls_url)

    assert done.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_a_bundle_set_by_the_user_is_kept(tls_url: str, authority: trustme.CA) -> None:
    pem = authority.cert_pem.bytes().decode()

    done = _ask(tls_url, **{VARIABLE: pem, "SSL_CERT_FILE": certifi.where()})

    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


@pytest.mark.parametrize(
    "text", ["no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_an_invalid_certificate_is_reported(tls_url: str, text: str) -> None:
    done = _ask(tls_url, **{VARIABLE: text})

    assert done.returncode == 2
    assert "HMI_CA_CERTIFICATES holds no certificates in PEM form" in done.stderr
    assert "Traceback" not in done.stderr
