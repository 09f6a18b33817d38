"""Additional certificate authorities for calls to addresses outside of the cluster."""

import os
import ssl
import sys
import tempfile
from pathlib import Path

import certifi

VARIABLE = "HMI_CA_CERTIFICATES"
"""PEM text of the authorities to trust in addition to the usual ones."""
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Variables with a bundle for OpenSSL (aiohttp, httpx), requests and botocore."""

_WRONG_SETTINGS = 2


def trust_ca_certificates() -> None:
    """Make this process trust the authorities in ``HMI_CA_CERTIFICATES`` too; call it before anything else.

    The usual authorities and these are written to one file, and ``BUNDLE_VARIABLES`` are set to it. The
    process then executes itself again, since libraries read the bundle when they are imported. Do nothing if
    the variable is empty, or if the user has set one of ``BUNDLE_VARIABLES``.

    Ends the process with status 2 and a message when the variable holds no certificates.
    """
    certificates = os.environ.get(VARIABLE, "").strip()
    if not certificates or any(name in os.environ for name in BUNDLE_VARIABLES):
        return
    bundle = _write_bundle(certificates)
    os.environ.update(dict.fromkeys(BUNDLE_VARIABLES, str(bundle)))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 -- this very program


def _write_bundle(certificates: str) -> Path:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError) as error:
        print(
            f"{VARIABLE} holds no certificates in PEM form ({error}). "
            "On Kubernetes it comes from the chart's customCA.",
            file=sys.stderr,
        )
        sys.exit(_WRONG_SETTINGS)
    usual = Path(certifi.where()).read_text(encoding="utf-8")
    with tempfile.NamedTemporaryFile(
        "w", prefix="hmi-ca-", suffix=".pem", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"{usual}\n{certificates}\n")
    return Path(file.name)
