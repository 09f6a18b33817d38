"""The checks of `helm test`."""

import os
import sys

import httpx

GATEWAY, CONTROL_PLANE = os.environ["GATEWAY"], os.environ["CONTROL_PLANE"]
WRONG = {"authorization": "Bearer hmi_0000000000000000_" + "0" * 64}
CHECKS = [
    ("the gateway is alive", f"{GATEWAY}/healthz", {}, 200),
    ("the gateway is ready", f"{GATEWAY}/readyz", {}, 200),
    ("the control plane and its database are ready", f"{CONTROL_PLANE}/readyz", {}, 200),
    ("the gateway refuses an unknown key", f"{GATEWAY}/v1/models", WRONG, 401),
    ("the control plane refuses a wrong administrator", f"{CONTROL_PLANE}/admin/v1/tenants", WRONG, 401),
    ("the internal API refuses strangers", f"{CONTROL_PLANE}/internal/v1/runs/none", WRONG, 401),
]

failed = 0
for what, url, headers, wanted in CHECKS:
    try:
        answer = httpx.get(url, headers=headers, timeout=10, trust_env=False)
        found = str(answer.status_code)
    except httpx.HTTPError as error:
        found = repr(error)
    good = found == str(wanted)
    failed += not good
    print("ok  " if good else "FAIL", what, "" if good else f"({url}: {found}, not {wanted})")
sys.exit(failed)
