"""An HTTP server on this machine that misbehaves as a test tells it to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file, and how it is served.

    Args:
        body: Its bytes.
        etag: Sent with it; None sends none.
        modified: Sent as Last-Modified.
        ranges: Whether ranges are honoured.
        if_range: Whether If-Range is compared.
        from_start: Whether a range is answered as such, but from the first byte.
        cuts: For one request after the other, after how many bytes the connection is closed.
        statuses: For one request after the other, a status that is answered instead; 0 serves the file.
        headers: Further headers.
        length: Whether the length is told.
        pause: Seconds between two pieces of 1,000 bytes.
    """

    body: bytes
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    if_range: bool = True
    from_start: bool = False
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    length: bool = True
    pause: float = 0.0


@dataclass
class FileServer:
    """The running server: its address, its files by path, and the headers of every request it got."""

    address: str
    files: dict[str, Served]
    requests: list[dict[str, str]]

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def ranges(self) -> list[str | None]:
        return [request.get("Range") for request in self.requests]


@contextmanager
def serving(**files: Served) -> Iterator[FileServer]:
    """Serve `files`; an underscore in a name stands for a dot."""
    served = {f"/{name.replace('_', '.')}": content for name, content in files.items()}
    requests: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # a connection for each request

        def do_GET(self) -> None:
            requests.append(dict(self.headers.items()))
            file = served.get(self.path)
            if file is None:
                self.send_error(404)
                return
            if file.statuses and (status := file.statuses.pop(0)):
                self.send_error(status)
                return
            self._send(file)

        def _send(self, file: Served) -> None:
            first = self._first(file)
            if first is not None and first >= len(file.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(file.body)}")
                self.end_headers()
                return
            body = file.body[first or 0 :]
            self.send_response(200 if first is None else 206)
            for name, value in (("ETag", file.etag), ("Last-Modified", file.modified)):
                if value:
                    self.send_header(name, value)
            if first is not None:
                self.send_header("Content-Range", f"bytes {first}-{len(file.body) - 1}/{len(file.body)}")
            if file.length:
                self.send_header("Content-Length", str(len(body)))
            for name, value in file.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if file.cuts:
                body = body[: file.cuts.pop(0)]
            for start in range(0, len(body), 1000):
                time.sleep(file.pause)
                self.wfile.write(body[start : start + 1000])

        def _first(self, file: Served) -> int | None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if not wanted or not file.ranges:
                return None
            condition = self.headers.get("If-Range")
            if file.if_range and condition and condition not in (file.etag, file.modified):
                return None
            return 0 if file.from_start else int(wanted[1])

        def log_message(self, *arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *arguments: object) -> None:
            pass  # a client that was killed

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield FileServer(f"http://127.0.0.1:{server.server_address[1]}", served, requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
