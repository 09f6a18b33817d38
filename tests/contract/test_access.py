"""Callers that the internal API accepts, and its errors for bodies of the wrong shape."""

from typing import Any

import pytest

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.client import ONE_ATTEMPT, ControlPlaneClient
from hmi_api.internal.runs import RunFailure
from hmi_api.internal.trainer_client import TrainerClient
from hmi_api.names import Tenant
from hmi_api.security.bearer import TokenSource

pytestmark = pytest.mark.anyio

WRONG = "another-token-of-the-tests"


async def test_an_unknown_token_is_refused_to_operators_and_trainers(plane: Any) -> None:
    async with ControlPlaneClient(plane.url, WRONG, retry=ONE_ATTEMPT) as client:
        with pytest.raises(HmiError, match="TokenRefused") as caught:
            await client.ensure_tenant(Tenant("shop"))
    assert not isinstance(caught.value, InvalidInput | NotReady)
    with TrainerClient(plane.url, TokenSource(WRONG), "00ff") as trainer, pytest.raises(HmiError) as caught:
        trainer.fail_run(RunFailure(reason="CorpusEmpty", message="m"))
    assert caught.value.reason == "TokenRefused"


async def test_a_request_without_a_token_is_401(plane: Any) -> None:
    answer = plane.send("GET", "/domains", token=None)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("body", [{}, {"uid": "u", "tenant": "shop", "surprise": 1}, {"uid": "u" * 65}])
async def test_a_record_of_the_wrong_shape_is_422(plane: Any, body: dict[str, Any]) -> None:
    await plane.client.ensure_tenant(Tenant("shop"))
    answer = plane.send("PUT", "/domains/shop/hotel", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "InvalidField")
    assert await plane.client.domain("shop/hotel") is None


async def test_an_unknown_path_is_404(plane: Any) -> None:
    answer = plane.send("GET", "/nothing")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
