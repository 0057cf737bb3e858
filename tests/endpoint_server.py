"""A real HTTP server on the loopback that speaks chat completions and misbehaves on demand, and an answer for it to give."""

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cartoons import two_friends

from curation.asking import AskConfig, asker_of
from curation.ledger import AskLimits

USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}


@dataclass
class Reply:
    """What the server does with one request.

    ``hang`` waits so many seconds first, ``drip`` between any two bytes, ``drip_head`` the same before the body, ``length`` is
    declared instead of the true length, and ``chunked`` sends the body in chunks.
    """

    body: bytes = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    hang: float = 0.0
    drip: float = 0.0
    drip_head: float = 0.0
    length: int | None = None
    chunked: bool = False


def completion(content, *, finish="stop", usage=USAGE, **how):
    """A chat completion with ``content``, a text or what is to be written as JSON."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    message = {"role": "assistant", "content": text}
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    return Reply(json.dumps(body | ({"usage": usage} if usage else {})).encode(), **how)


def refusal(status, message="", **headers):
    """An error as OpenAI words them; ``retry_after=1`` becomes the header Retry-After."""
    named = {name.replace("_", "-").title(): str(value) for name, value in headers.items()}
    return Reply(json.dumps({"error": {"message": message, "code": status}}).encode(), status, named)


class ChatServer:
    """Context manager; ``replies`` are given in order, the last one again and again."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests, self.headers, self.paths = [], [], []
        self.at_once = self.most_at_once = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                    reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
                server.closing.wait(reply.hang)
                with server.lock:
                    server.at_once -= 1
                with suppress(OSError):  # the client has gone, as it should after its timeout
                    self.answer(reply)
                self.close_connection = True

            def answer(self, reply):
                for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 100 if reply.drip_head else b"":
                    self.wfile.write(bytes([byte]))
                    if server.closing.wait(reply.drip_head):
                        return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
                self.end_headers()
                if reply.chunked:
                    for first in range(0, len(reply.body), 100):
                        part = reply.body[first : first + 100]
                        self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    self.wfile.write(b"0\r\n\r\n")
                elif reply.drip:
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        if server.closing.wait(reply.drip):
                            return
                else:
                    self.wfile.write(reply.body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def texts(self):
        """Everything said in each request, as one text."""
        return [
            "\n".join(
                part if isinstance(part, str) else part.get("text", "")
                for message in request["messages"]
                for part in (message["content"] if isinstance(message["content"], list) else [message["content"]])
            )
            for request in self.requests
        ]


def http_date(seconds_from_now):
    """A date as a Retry-After header may hold it."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + seconds_from_now))


VIEW = two_friends().view
CAST = [["hen"], ["bird"], ["hen", "bird"], ["hen"], []]


def script():
    """A right answer to the story of two friends: five shots, three seconds each but the last."""
    shots = [
        {
            "shot": place + 1,
            "start_time": round(VIEW.times[place]),
            "end_time": round(VIEW.times[place + 1]),
            "cuts_inside": [],
            "scene": ["meadow", "dusk", "meadow", "dusk", None][place],
            "characters": CAST[place],
            "narrative_caption": f"The search takes step {place + 1}.",
            "descriptive_caption": f"In picture {place + 1}, a hill under a wide sky.",
            "prologue_or_epilogue": "epilogue" if place == 4 else None,
            "representative_start_time": None,
        }
        for place in range(5)
    ]
    return {
        "storyline": "A hen and a bird find each other.",
        "characters": [{"id": "hen", "appearance": "a red hen"}, {"id": "bird", "appearance": "a blue bird"}],
        "scenes": [{"id": "meadow", "environment": "a green meadow"}, {"id": "dusk", "environment": "grey hills"}],
        "shots": shots,
    }


def changed(**fields):
    """A right answer but for fields of its third shot."""
    answer = script()
    answer["shots"][2] |= fields
    return answer


def asker_on(server, cache, sleep, model="tiny/model", **settings):
    """Asks a server; settings may be of :class:`AskConfig` or of :class:`AskLimits`."""
    settings = {"timeout": 5, "retries": 2} | settings
    parts = [
        {name: value for name, value in settings.items() if name in kind.__dataclass_fields__}
        for kind in (AskConfig, AskLimits)
    ]
    return asker_of(f"openai:{server.url}#{model}", AskConfig(**parts[0]), AskLimits(**parts[1]), cache=cache, sleep=sleep)
