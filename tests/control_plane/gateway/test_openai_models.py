"""OpenAI's list of models, and the metrics of requests."""

from typing import Any


def test_a_tenant_lists_only_its_own_models(acme: Any, other_tenant: Any, cluster: Any) -> None:
    cluster.declare_adapter("fresh")
    models = acme.call("GET", "/v1/models").json()
    assert models["object"] == "list"
    assert {model["id"]: model["ready"] for model in models["data"]} == {
        "fresh": False,
        "names": True,
        "spam": True,
        "topic": True,
    }
    assert acme.call("GET", "/v1/models/names").json()["task"] == "TokenClassification"
    assert other_tenant.call("GET", "/v1/models").json()["data"] == []
    assert other_tenant.call("GET", "/v1/models/acme/spam").status_code == 404


def test_metrics_count_requests_and_tokens(acme: Any, client: Any) -> None:
    acme.classify(model="spam", input="one two three")
    text = client.get("/metrics").text
    assert 'hmi_requests_total{code="200",route="/classify"} 1.0' in text
    assert 'hmi_tokens_total{direction="prompt"} 3.0' in text
    assert "hmi_usage_spool_lag_seconds 0.0" in text
