"""A web server of one folder with byte ranges over kept connections; ``python folder_server.py FOLDER`` prints its address."""

import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

    def __init__(self, folder, asked, *args):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def setup(self):
        super().setup()
        self.asked.append("connection")

    def do_GET(self):
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        self.asked.append((self.path, self.headers.get("Range")))
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = int(first), min(int(last or size - 1), size - 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        with path.open("rb") as file:
            self.wfile.flush()
            self.connection.sendfile(file, first, last - first + 1)

    def log_message(self, *_):
        pass


class FolderServer:
    """Context manager; ``asked`` lists connections, and requests as (path, range)."""

    def __init__(self, folder):
        self.asked = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, Path(folder), self.asked))
        self.http.daemon_threads, self.http.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def requests(self):
        return [each for each in self.asked if each != "connection"]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


if __name__ == "__main__":
    server = FolderServer(sys.argv[1])
    print(server.url, flush=True)
    server.http.serve_forever()
