"""A training program for tests: a file named like its resource, in BEHAVIOURS, says how it behaves."""

import hashlib
import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

API = os.environ["HMI_CONTROL_PLANE_URL"] + "/internal/v1"
RUN = os.environ["HMI_RUN_ID"]
FOLDER = Path(os.environ["HMI_WORK_DIR"])


def send(method: str, path: str, data: bytes | None = None, kind: str = "application/json") -> Any:
    headers = {"Authorization": "Bearer " + os.environ["HMI_INTERNAL_TOKEN"], "Content-Type": kind}
    request = urllib.request.Request(API + path, data, headers, method=method)  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.loads(answer.read() or b"null")


def report(verb: str, body: Any) -> None:
    send("POST", f"/runs/{RUN}/{verb}", json.dumps(body).encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def publish(kind: str) -> Any:
    """Upload a file, and make an artifact of it."""
    content = f'"{kind} of {RUN}"'.encode()
    send("PUT", f"/artifacts/{RUN}/files/{digest(content)}", content, "application/octet-stream")
    file = {"path": "content.json", "digest": f"sha256:{digest(content)}", "bytes": len(content)}
    manifest = json.dumps({"kind": kind, "baseDigest": "sha256:b", "files": [file]})
    return send("POST", f"/artifacts/{RUN}", json.dumps({"manifest": manifest}).encode())["artifact"]


def main() -> int:
    run = send("GET", f"/runs/{RUN}")
    assert run["spec"]["kind"] == sys.argv[1]
    file = Path(os.environ["BEHAVIOURS"]) / run["spec"]["name"]
    behaviour, *later = file.read_text().split() if file.exists() else ["succeed"]
    if later:
        file.write_text(" ".join(later))
    report("progress", {"stage": "training", "step": 1, "total": 4})
    with (FOLDER / "starts").open("a") as starts:
        starts.write("start ")
    print("started", flush=True)
    if behaviour == "crash":
        return 3
    if behaviour == "hang":
        time.sleep(600)
    if behaviour in ("fail", "flake"):
        failure = {"reason": "CorpusEmpty", "message": "There is no text.", "retryable": behaviour == "flake"}
        report("fail", failure)
        return 1
    kinds = ["Layers", "Table"] if sys.argv[1] == "domain" else ["Adapter"]
    result = {
        "artifacts": [publish(kind) for kind in kinds],
        "baseDigest": "sha256:b",
        "split": 3,
        "entries": 5,
        "coverage": 0.5,
        "labels": ["a", "b"],
        "metrics": {"accuracy": 0.9},
        "gatePassed": behaviour != "gate",
        "gateMessage": "accuracy 0.5 is under 0.9.",
    }
    report("complete", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
