"""Runs in a pod: sends the requests on standard input, several at once, and prints the answers.

Input is a JSON list of {"method", "path", "key", "body"}; output a list of {"status", "headers", "body"}.
"""

import asyncio
import json
import sys

import httpx

IN_FLIGHT = 8
SECONDS = 60.0


async def main(server):
    requests = json.load(sys.stdin)
    room = asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(base_url=server, timeout=SECONDS, trust_env=False) as client:

        async def send(request):
            headers = {"Authorization": f"Bearer {request['key']}"} if request.get("key") else {}
            async with room:
                answer = await client.request(
                    request["method"], request["path"], headers=headers, json=request.get("body")
                )
            return {"status": answer.status_code, "headers": dict(answer.headers), "body": answer.text}

        print(json.dumps(await asyncio.gather(*map(send, requests))))


asyncio.run(main(sys.argv[1]))
