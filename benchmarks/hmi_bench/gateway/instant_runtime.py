"""A program: a runtime that answers at once.

Every row gets the same scores. It prints its port and understands only the requests of a gateway.
"""

import asyncio

from hmi_api.internal.inference import InferReply, InferRequest, RowResult

_RESULT = RowResult(version=1, labels=["no", "yes"], scores=[0.25, 0.75], prompt_tokens=12)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection until it is closed."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            request = InferRequest.model_validate_json(await reader.readexactly(int(length)))
            reply = InferReply(results=[_RESULT] * len(request.rows)).model_dump_json(by_alias=True).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(reply), reply)
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _serve() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
