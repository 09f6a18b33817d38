"""Runs in a pod: a steady load that retries nothing, until a file appears; prints what came back.

Arguments: the server, the file that ends it, the seconds after which it ends anyway. Input is a JSON list of
{"model", "key", "texts"}, sent in turn by workers; half of them open a new connection for each request.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

WORKERS = 4
PAUSE_SECONDS = 0.1
SECONDS = 60.0
SHOWN_FAILURES = 20


class Load:
    """The requests to send, and the outcomes."""

    def __init__(self, server, stop, limit_s, targets):
        self.server, self.stop, self.targets = server, stop, targets
        self.began = time.monotonic()
        self.ends = self.began + limit_s
        self.outcomes, self.answered, self.failures = Counter(), Counter(), []
        self.slowest = 0.0

    async def run(self):
        """Send until the end."""
        await asyncio.gather(*(self.work(number) for number in range(WORKERS)))
        return {
            "outcomes": self.outcomes,
            "answered": self.answered,
            "failures": self.failures[:SHOWN_FAILURES],
            "slowest_s": round(self.slowest, 3),
            "seconds": round(time.monotonic() - self.began, 1),
        }

    async def work(self, number):
        """Send requests as one client."""
        place = number
        async with httpx.AsyncClient(base_url=self.server, timeout=SECONDS, trust_env=False) as kept:
            while not self.stop.exists() and time.monotonic() < self.ends:
                target = self.targets[place % len(self.targets)]
                place += 1
                if number % 2:
                    await self.send(kept, target)
                else:
                    async with httpx.AsyncClient(
                        base_url=self.server, timeout=SECONDS, trust_env=False
                    ) as fresh:
                        await self.send(fresh, target)
                await asyncio.sleep(PAUSE_SECONDS)

    async def send(self, client, target):
        """Send one request and record its outcome."""
        sent = time.monotonic()
        body = {"model": target["model"], "input": target["texts"]}
        try:
            answer = await client.post(
                "/classify", json=body, headers={"Authorization": f"Bearer {target['key']}"}
            )
        except httpx.HTTPError as error:
            outcome, said = type(error).__name__, str(error)
        else:
            retry = answer.headers.get("retry-after")
            outcome = f"{answer.status_code}" + (" with Retry-After" if retry else "")
            said = answer.text[:300]
        self.slowest = max(self.slowest, time.monotonic() - sent)
        self.outcomes[outcome] += 1
        if outcome == "200":
            self.answered[target["model"]] += 1
        else:
            at = round(sent - self.began, 1)
            self.failures.append(f"{at}s {target['model']} {outcome}: {said}")


if __name__ == "__main__":
    server, stop, limit_s = sys.argv[1:4]
    load = Load(server, Path(stop), float(limit_s), json.load(sys.stdin))
    print(json.dumps(asyncio.run(load.run())))
