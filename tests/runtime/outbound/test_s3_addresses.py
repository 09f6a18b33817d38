"""S3 services that a tenant names: their address, their proxy, and where credentials are fetched."""

from collections.abc import Callable

import pytest
from recording_proxy import RecordingProxy
from support_outbound import CLUSTER, LOOPBACK, Install, Server, read_all

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.security.address_policy import AddressPolicy


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Name an S3 service in the environment, as a tenant's Secret does."""
    pytest.importorskip("s3fs")

    def named(endpoint: str) -> None:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    return named


@pytest.mark.parametrize(
    "endpoint", ["http://169.254.169.254", "http://minio.minio.svc:9000", "http://10.0.0.1"]
)
def test_an_s3_service_at_an_internal_address_is_refused(
    endpoint: str, s3: Callable[[str], None], install: Install, connections: list[str]
) -> None:
    s3(endpoint)
    install(CLUSTER)

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        read_all("s3://bucket/rows.jsonl")
    assert connections == []


def test_an_s3_service_whose_name_resolves_to_an_internal_address_is_refused(
    s3: Callable[[str], None], install: Install, connections: list[str]
) -> None:
    s3("http://s3.example:9000")
    install(CLUSTER, {"s3.example": ["10.0.0.1"], "bucket.s3.example": ["10.0.0.1"]})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        read_all("s3://bucket/rows.jsonl")
    assert connections == []


def test_a_listed_s3_service_is_called(s3: Callable[[str], None], install: Install, server: Server) -> None:
    s3(f"http://minio.minio.svc:{server.port}")
    policy = AddressPolicy(allowed_hosts=("minio.minio.svc",), allowed_networks=(LOOPBACK,))
    install(policy, {"minio.minio.svc": ["127.0.0.1"], "bucket.minio.minio.svc": ["127.0.0.1"]})

    for missing in (404, 403, 400):
        server.missing = missing
        with pytest.raises(HmiError) as caught:
            read_all("s3://bucket/rows.jsonl")
        assert "SECRET-REASON" not in caught.value.message
    assert server.requests


def test_s3_is_called_through_the_proxy(
    s3: Callable[[str], None], install: Install, proxy: RecordingProxy
) -> None:
    s3("http://s3.example")
    install(CLUSTER, {}, proxies={"HTTP_PROXY": proxy.url})

    with pytest.raises(HmiError):
        read_all("s3://bucket/rows.jsonl")
    assert any("s3.example" in line for line in proxy.requests)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://hmi-control-plane.hmi-system.svc/metrics"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/credentials"),
    ],
)
def test_credentials_are_not_fetched_from_internal_addresses(
    variable: str,
    value: str,
    s3: Callable[[str], None],
    install: Install,
    connections: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3("https://s3.example")
    monkeypatch.setenv(variable, value)
    install(CLUSTER, {})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        read_all("s3://bucket/rows.jsonl")
    assert connections == []
