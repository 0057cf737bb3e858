"""A media server that answers HEAD as well, counts by method, and fails in the ways of servers that are asked for metadata."""

import socket
import struct
import threading
from dataclasses import dataclass

from media_server import MediaServer, Served


@dataclass
class Fault(Served):
    """Nothing is answered: ``kind`` "reset" breaks the connection, "stall" keeps it open until the server is closed."""

    kind: str = "reset"


class SourceServer(MediaServer):
    """``methods`` lists (method, path) of every request; ``head`` is the status that refuses HEAD, None to answer it.

    ``phrase`` stands beside every status of HEAD. ``most`` is the greatest number of HEAD requests that waited for their answer
    at once.
    """

    def __init__(self, head=None):
        super().__init__()
        self.methods, self.head, self.phrase = [], head, None
        self.most = self.waiting = 0
        server, handler = self, self.http.RequestHandlerClass
        answer = handler.answer

        def answered(self, served):
            server.methods.append((self.command, self.path))
            if isinstance(served, Fault):
                if served.kind == "stall":
                    server.stalled.set()
                    server.closing.wait()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif self.command == "HEAD":
                server.wait_a_moment()
                self.send_response(server.head or served.status, server.phrase)
                self.send_header("Content-Type", served.type)
                self.send_header("Content-Length", str(len(served.body)))
                for name, value in served.headers.items():
                    self.send_header(name, value)
                self.end_headers()
            else:
                if self.command == "POST":
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer(self, served)

        handler.answer = answered
        handler.do_HEAD = handler.do_POST = handler.do_GET

    def wait_a_moment(self):
        """Long enough for another request to come in, if the client sends one before it has this one's answer."""
        with self.lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        threading.Event().wait(0.01)
        with self.lock:
            self.waiting -= 1

    def films(self, number, *replies):
        """Let ``/0.mp4``, ``/1.mp4`` … answer alike, each by its own count; returns their addresses."""
        for place in range(number):
            self.serve(f"/{place}.mp4", *replies)
        return [f"{self.url}/{place}.mp4" for place in range(number)]
