"""Parts of the tests of outbound connections: policies, refused addresses, and an HTTP server on loopback."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network

from hmi_api.resources.common import DataSource
from hmi_api.security.address_policy import AddressPolicy
from hmi_runtime.outbound.guard import Guard
from hmi_runtime.training.data_reader import read_rows
from hmi_runtime.training.file_selection import DataUse, SourceStats

ROW = b'{"text": "a row"}\n'
CLUSTER = AddressPolicy()
LISTED = AddressPolicy(allowed_hosts=("data.example", ".listed.example"))
"""The fake resolver sends listed names to loopback; ``open_to_loopback`` allows loopback."""
LOOPBACK = ip_network("127.0.0.1/32")

REFUSED_URLS = [
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1/x",
    "http://127.1/x",
    "http://2130706433/x",
    "http://0x7f000001/x",
    "http://0177.0.0.1/x",
    "http://0xa9.0xfe.0xa9.0xfe/x",
    "http://[::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://[::ffff:a9fe:a9fe]/x",
    "http://[64:ff9b::a9fe:a9fe]/x",
    "http://[fe80::1]/x",
    "http://[fd00:ec2::254]/x",
    "http://10.0.0.1/x",
    "http://100.64.0.1/x",
    "http://0.0.0.0/x",
    "http://224.0.0.1/x",
    "http://localhost/x",
    "http://LOCALHOST./x",
    "http://hmi-control-plane/metrics",
    "http://hmi-control-plane.hmi-system.svc/metrics",
    "http://hmi-control-plane.hmi-system.svc.cluster.local/metrics",
    "http://hmi-control-plane.hmi-system.svc.corp.example/metrics",
    "http://metadata.google.internal/x",
    "http://Metadata.Google.Internal./x",
    "https://user:password@169.254.169.254/x",
]


class Server:
    """An HTTP server on loopback; answers by path, with a redirect if the answer is an address."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | str] = {}
        self.requests: list[tuple[str, str]] = []
        self.missing = 404
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.headers["Host"], self.path))
                answer = server.answers.get(self.path)
                if isinstance(answer, str):
                    self.send_response(302)
                    self.send_header("Location", answer)
                    answer = b""
                else:
                    self.send_response(200 if answer else server.missing, None if answer else "SECRET-REASON")
                body = answer or b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 -- a name of http.server's

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]

    def serve(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield self
        self.http.shutdown()
        thread.join()
        self.http.server_close()


Install = Callable[..., Guard]


def read_all(uri: str) -> list[object]:
    return [
        dict(row.fields)
        for row in read_rows(DataSource(uri=uri, format="JSONLines"), SourceStats(DataUse.CORPUS))
    ]


def open_to_loopback() -> AddressPolicy:
    return AddressPolicy(allowed_networks=(LOOPBACK,))
