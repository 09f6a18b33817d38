"""A table follows its traffic on one machine: real processes, a small random base model, and the command."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from embedded import Embedded, wait_for
from support_encoders import SPECIAL_TOKENS, save_base_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from hmi_api.resources.kinds import DOMAIN as DOMAIN_KIND
from hmi_api.resources.kinds import TASK_ADAPTER, Kind
from hmi_cli.api import AdminApi, ResourceApi
from hmi_cli.client import Client
from hmi_cli.system.home import HomeFolder

WORDS = "the a chain brake wheel room key lost breakfast is on in my and slips squeals cold late please fix"
OLD = ["the chain slips", "my brake squeals please fix", "a wheel is on the brake", "please fix my chain"]
NEW = ["the room is cold", "my key is lost please", "breakfast is late and cold", "a cold room and lost key"]
pytestmark = pytest.mark.timeout(600)
LIMIT_S = 240.0
ROUNDING = 2e-3
"""How far float16 tables move a probability of this model."""

DOMAIN = """
apiVersion: hmi.dev/v1alpha1
kind: Domain
metadata: {{name: desk}}
spec:
  baseModel: {{uri: {base}}}
  corpus: [{{uri: {corpus}, format: Text}}]
  training: {{steps: 2, batchSize: 4, maxLength: 16}}
  plot: {{minFrequency: 1, maxEntries: 400, refresh: {{minMissRate: 1}}}}
"""
ADAPTER = """
apiVersion: hmi.dev/v1alpha1
kind: TaskAdapter
metadata: {{name: topic}}
spec:
  domainRef: {{name: desk}}
  task: {{type: SequenceClassification}}
  data: {{train: {{uri: {rows}}}}}
  training: {{epochs: 1, maxLength: 16}}
  method: {{fit: Direct, size: 4}}
"""


@pytest.fixture
def hmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    """HMI whose runtime reports what traffic looked up at once."""
    monkeypatch.setenv("HMI_WINDOW_COUNTS_SECONDS", "0.5")
    monkeypatch.setenv("HMI_WINDOW_COUNTS__MERGE_SECONDS", "0.5")
    system = Embedded(tmp_path / "home")
    system.start()
    yield system
    system.stop()


def apply(hmi: Embedded, folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *WORDS.split()])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    base = folder / "base"
    save_base_model(base, "bert", tokenizer, hidden_size=16, intermediate_size=32, initializer_range=0.3)
    (folder / "corpus.txt").write_text("\n".join(OLD * 5))
    rows = [{"text": text, "label": "old" if text in OLD else "new"} for text in (OLD + NEW) * 3]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = DOMAIN.format(base=base, corpus=folder / "corpus.txt")
    manifest += "---" + ADAPTER.format(rows=folder / "rows.jsonl")
    hmi.hmi("apply", "-f", "-", stdin=manifest)


def test_a_topic_that_shifts_a_refresh_and_a_rollback(hmi: Embedded, tmp_path: Path) -> None:
    apply(hmi, tmp_path)
    home = HomeFolder(hmi.home)
    url = (hmi.home / "url").read_text().strip()
    with Client(url, home.read_admin_key()) as client, httpx.Client(trust_env=False, timeout=60) as http:
        resources = ResourceApi(client)

        def status(kind: Kind = DOMAIN_KIND, name: str = "desk") -> dict[str, Any]:
            found: dict[str, Any] = resources.get(kind, "default", name)["status"]
            return found

        wait_for(lambda: status(TASK_ADAPTER, "topic").get("phase") == "Ready", LIMIT_S, hmi.log)
        key = AdminApi(client).create_key("default", "test")["key"]

        def ask(texts: list[str]) -> list[list[float]]:
            body = {"model": "topic", "input": texts}
            answer = http.post(f"{url}/classify", json=body, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200, answer.text
            return [row["probs"] for row in answer.json()["data"]]

        before = ask(OLD + NEW)
        during = []
        hmi.hmi("refresh", "desk")
        wait_for(lambda: during.append(ask(OLD + NEW)) or status()["version"] == 2, LIMIT_S, hmi.log)
        refreshed, trained = status()["refresh"]["tables"]
        assert refreshed["cause"] == "Request"
        assert refreshed["windowsIn"] > 0
        assert refreshed["hitRateBefore"] < 0.9
        assert trained["entries"] + refreshed["windowsIn"] - refreshed["windowsOut"] == refreshed["entries"]
        assert "refreshed table" in hmi.hmi("describe", "dom", "desk").stdout
        wait_for(lambda: during.append(ask(OLD + NEW)) or status().get("hitRate") == 1.0, LIMIT_S, hmi.log)
        for answers in during:
            assert answers == [pytest.approx(probs, abs=ROUNDING) for probs in before]
        assert status(TASK_ADAPTER, "topic")["version"] == 1
        hmi.hmi("rollback", "desk")
        wait_for(lambda: status()["version"] == 3, LIMIT_S, hmi.log)
        assert status()["entries"] == trained["entries"]
        assert status()["refresh"]["tables"][0]["restored"] == 1
        assert ask(NEW) == [pytest.approx(probs, abs=ROUNDING) for probs in before[len(OLD) :]]
