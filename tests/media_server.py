"""A real HTTP server on the loopback that serves films with byte ranges, and misbehaves on demand."""

import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

PIECE = 4096


@dataclass
class Served:
    """What the server does with one request of a path.

    ``status`` other than 200 answers with it and ``body`` whole. ``drop_at`` breaks the connection after so many bytes of what
    was asked for, ``stall_at`` goes quiet there until the server is closed. ``ranges`` off ignores Range. ``sized`` off leaves
    out the length.
    """

    body: bytes = b""
    type: str | None = "video/mp4"
    status: int = 200
    headers: dict = field(default_factory=dict)
    drop_at: int | None = None
    stall_at: int | None = None
    ranges: bool = True
    sized: bool = True
    etag: str | None = None


@dataclass(frozen=True)
class Asked:
    """One request: what was asked for, with which headers, and how many requests of this server were being answered."""

    path: str
    headers: dict
    together: int

    @property
    def range(self):
        return self.headers.get("Range")


class MediaServer:
    """Context manager; the replies of a path are given in order, the last one again and again. Other paths are not found."""

    def __init__(self):
        self.replies = defaultdict(lambda: [Served(b"nothing here", "text/plain", 404)])
        self.asked = []
        self.stalled, self.closing = threading.Event(), threading.Event()
        self.lock, self.open = threading.Lock(), 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with server.lock:
                    server.open += 1
                    server.asked.append(Asked(self.path, dict(self.headers), server.open))
                    replies = server.replies[unquote(self.path.partition("?")[0])]
                    served = replies.pop(0) if len(replies) > 1 else replies[0]
                try:
                    with suppress(OSError):  # the client has enough of it, as it does once it has read the type
                        self.answer(served)
                finally:
                    with server.lock:
                        server.open -= 1

            def answer(self, served):
                body, first, asked = served.body, 0, self.headers.get("Range")
                changed = self.headers.get("If-Range") not in (None, served.etag)
                if asked and served.ranges and served.status == 200 and not changed:
                    first = int(asked.removeprefix("bytes=").partition("-")[0])
                    if first >= len(body):
                        self.send_response(416)
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(served.status)
                headers = {"Content-Type": served.type, "ETag": served.etag, **served.headers}
                if served.sized:
                    headers["Content-Length"] = str(len(body) - first)
                for name, value in headers.items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                self.send(body[first:], served)

            def send(self, body, served):
                end = min(at for at in (served.drop_at, served.stall_at, len(body)) if at is not None)
                for start in range(0, end, PIECE):
                    self.wfile.write(body[start : min(start + PIECE, end)])
                if served.stall_at is not None and end < len(body):
                    self.wfile.flush()
                    server.stalled.set()
                    server.closing.wait()

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_address[1]}"
        self.url = f"http://{self.host}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def serve(self, path, *replies):
        """Say what a path answers from now on."""
        self.replies[path] = list(replies)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
