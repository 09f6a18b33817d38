"""A control plane that honours the wire contract in memory, and a training program that obeys a test."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from hmi_api.errors import error_body

TOKEN = "internal-token-of-the-tests"

PROGRAM = """
import json, os, signal, sys, time, urllib.request
from pathlib import Path

url = os.environ["HMI_CONTROL_PLANE_URL"] + "/internal/v1/runs/" + os.environ["HMI_RUN_ID"]
headers = {"Authorization": "Bearer " + os.environ["HMI_INTERNAL_TOKEN"], "Content-Type": "application/json"}

def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as answer:
        return json.load(answer)

run = ask("")
assert run["spec"]["kind"] == sys.argv[1]
file = Path(os.environ["BEHAVIOURS"]) / run["spec"]["name"]
lines = file.read_text().split() if file.exists() else ["succeed"]
behaviour = lines[0]
if len(lines) > 1:
    file.write_text(" ".join(lines[1:]))
ask("/progress", {"stage": "training", "step": 1, "total": 4})
with open(Path(os.environ["HMI_WORK_DIR"]) / "starts", "a") as starts:
    starts.write("start ")
print("started", flush=True)
if behaviour == "crash":
    sys.exit(3)
if behaviour == "hang":
    time.sleep(600)
if behaviour in ("fail", "flake"):
    ask("/fail", {"reason": "CorpusEmpty", "message": "There is no text.", "retryable": behaviour == "flake"})
    sys.exit(1)
kind = "Layers" if sys.argv[1] == "domain" else "Adapter"
artifact = {"kind": kind, "uri": "a/" + run["id"], "digest": "sha256:" + run["specDigest"][-8:], "bytes": 10}
result = {"artifacts": [artifact], "baseDigest": "sha256:b", "split": 3, "entries": 5, "coverage": 0.5,
          "metrics": {"accuracy": 0.9}, "gatePassed": behaviour != "gate",
          "gateMessage": "accuracy 0.5 is under 0.9."}
ask("/complete", result)
"""


def _view(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "versions"}


class FakeControlPlane:
    """Domains, adapters and runs in dictionaries; versions are made of completed runs."""

    def __init__(self) -> None:
        self.domains: dict[str, dict[str, Any]] = {}
        self.adapters: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.tenants: set[str] = set()
        self.refuse: dict[str, str] = {}
        self.failures_to_come = 0
        self.pods: dict[str, list[dict[str, Any]]] = {}
        self.cluster: str | None = None
        self.known_seconds = 0.0
        self.inherited = False
        self.refuse_erasing = False
        self.app = FastAPI()
        self._add_routes()

    def _add_routes(self) -> None:
        @self.app.middleware("http")
        async def guard(request: Request, call_next: Any) -> Response:
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return JSONResponse(error_body("Unknown token.", "authentication_error", code="Unknown"), 401)
            if self.failures_to_come:
                self.failures_to_come -= 1
                return JSONResponse(error_body("Not now.", "server_error"), 503)
            answer: Response = await call_next(request)
            return answer

        @self.app.put("/internal/v1/cluster")
        async def claim(request: Request) -> Response:
            uid = (await request.json())["uid"]
            if self.cluster not in (None, uid):
                return JSONResponse(
                    error_body("It is another's.", "conflict_error", code="OtherCluster"), 409
                )
            self.cluster = uid
            return JSONResponse({"knownSeconds": self.known_seconds, "inherited": self.inherited})

        @self.app.get("/internal/v1/{kind}")
        async def listed(kind: str, domain: str = "") -> dict[str, Any]:
            rows = {key: entry["record"] for key, entry in getattr(self, kind).items()}
            return {
                "items": [
                    {"key": key, "uid": record["uid"]}
                    for key, record in rows.items()
                    if domain in ("", record.get("domain"))
                ]
            }

        @self.app.put("/internal/v1/runs/{run_id}/pods", status_code=204)
        async def pods(run_id: str, request: Request) -> None:
            self.pods[run_id] = (await request.json())["pods"]

        @self.app.put("/internal/v1/tenants/{tenant}", status_code=204)
        async def tenant(tenant: str) -> None:
            self.tenants.add(tenant)

        @self.app.api_route("/internal/v1/{kind}/{namespace}/{name}", methods=["PUT", "GET", "DELETE"])
        async def declared(kind: str, namespace: str, name: str, request: Request) -> Response:
            table, key = getattr(self, kind), f"{namespace}/{name}"
            if request.method == "DELETE":
                return self._erase(table, key, request.query_params.get("uid"))
            if request.method == "GET":
                return JSONResponse(_view(table[key])) if key in table else self._missing()
            if key in self.refuse:
                return JSONResponse(error_body(self.refuse[key], "conflict_error", code="NameTaken"), 409)
            record = await request.json()
            if record["tenant"] not in self.tenants:
                refusal = error_body("There is no such tenant.", "not_found_error", code="UnknownTenant")
                return JSONResponse(refusal, 404)
            table.setdefault(key, {})["record"] = record
            return Response(status_code=204)

        @self.app.post("/internal/v1/{kind}/{namespace}/{name}/publish-again")
        async def publish_again(kind: str, namespace: str, name: str, request: Request) -> dict[str, Any]:
            wanted = await request.json()
            entry = getattr(self, kind)[f"{namespace}/{name}"]
            earlier = [one for one in entry["versions"] if one["specDigest"] == wanted["specDigest"]]
            if not earlier:
                return {}
            number = len(entry["versions"]) + 1
            self._make_current(entry, earlier[-1] | {"version": number})
            return {"version": number}

        @self.app.post("/internal/v1/runs")
        async def create(request: Request) -> dict[str, Any]:
            wanted = await request.json()
            names = ("uid", "specDigest", "attempt")
            for run in self.runs.values():
                if all(run[field] == wanted[field] for field in names):
                    return run
            run_id = f"run-{len(self.runs) + 1}"
            self.runs[run_id] = {"id": run_id, "state": "Pending", "spec": wanted["spec"]} | {
                field: wanted[field] for field in names
            }
            return self.runs[run_id]

        @self.app.get("/internal/v1/runs/{run_id}")
        async def read(run_id: str) -> Response:
            return JSONResponse(self.runs[run_id]) if run_id in self.runs else self._missing()

        @self.app.post("/internal/v1/runs/{run_id}/{verb}")
        async def report(run_id: str, verb: str, request: Request) -> Response:
            run, body = self.runs[run_id], await request.json()
            if run["state"] in ("Succeeded", "Failed"):
                return JSONResponse(error_body("The run has ended.", "conflict_error", code="Ended"), 409)
            if verb == "progress":
                run |= {"state": "Running", "progress": body}
            elif verb == "fail":
                run |= {"state": "Failed", "failure": body}
            else:
                run |= {"state": "Succeeded", "result": body}
                self._publish(run, body)
            return JSONResponse(run)

    def _erase(self, table: dict[str, Any], key: str, uid: str | None) -> Response:
        if self.refuse_erasing:
            return JSONResponse(error_body("Not now.", "conflict_error", code="NotNow"), 409)
        stands = [one for one, entry in self.adapters.items() if entry["record"]["domain"] == key]
        if table is self.domains and stands:
            return JSONResponse(error_body(f"Delete {stands}.", "conflict_error", code="DomainInUse"), 409)
        if key in table and uid in (None, table[key]["record"]["uid"]):
            del table[key]
        return Response(status_code=204)

    def _publish(self, run: dict[str, Any], result: dict[str, Any]) -> None:
        spec = run["spec"]
        table = self.domains if spec["kind"] == "domain" else self.adapters
        entry = table[f"{spec['namespace']}/{spec['name']}"]
        if not result["gatePassed"]:
            return
        number = len(entry.get("versions", [])) + 1
        common = {"version": number, "specDigest": run["specDigest"], "metrics": result["metrics"]}
        artifact = result["artifacts"][0]
        if spec["kind"] == "domain":
            version = common | {
                "base": spec["spec"]["baseModel"],
                "baseDigest": "sha256:b",
                "split": result["split"],
                "layers": artifact,
                "tables": [artifact],
                "onMiss": "Compute",
                "entries": result["entries"],
                "coverage": result["coverage"],
            }
        else:
            layers = spec["domain"]["layers"]["digest"]
            version = common | {"artifact": artifact, "layersDigest": layers, "labels": ["a", "b"]}
            entry |= {"scheduledOn": ["r1"], "loadedOn": ["r1"]}
        self._make_current(entry, version)

    @staticmethod
    def _make_current(entry: dict[str, Any], version: dict[str, Any]) -> None:
        entry["current"] = version
        entry.setdefault("versions", []).append(version)

    @staticmethod
    def _missing() -> Response:
        return JSONResponse(error_body("Not there.", "not_found_error", code="NotFound"), 404)
