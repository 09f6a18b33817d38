"""The address of a runtime, as Kubernetes sets it."""

import pytest

from hmi_runtime.server.settings import RuntimeSettings


def _settings(url: str) -> RuntimeSettings:
    return RuntimeSettings(control_plane_url="http://control-plane", runtime_url=url, token_review=True)


@pytest.mark.parametrize(
    ("given", "url", "listens"),
    [
        ("http://10.0.0.7:8081", "http://10.0.0.7:8081", ("10.0.0.7", 8081)),
        ("http://fd00:10:244::7:8081", "http://[fd00:10:244::7]:8081", ("fd00:10:244::7", 8081)),
        ("http://[fd00::7]:8081", "http://[fd00::7]:8081", ("fd00::7", 8081)),
        ("http://runtime-0.example:9000", "http://runtime-0.example:9000", ("runtime-0.example", 9000)),
    ],
)
def test_an_ipv6_pod_address_becomes_a_url(given: str, url: str, listens: tuple[str, int]) -> None:
    settings = _settings(given)

    assert settings.runtime_url == url
    assert settings.listen_address == listens


def test_an_invalid_address_is_refused() -> None:
    with pytest.raises(ValueError, match="runtime_url"):
        _settings("http://fd00:::7:8081")
