"""A mock Hub on the loopback that the real ``huggingface_hub`` and ``datasets`` clients publish to and load from.

It speaks the HTTP API of the Hub without Xet (set ``HF_HUB_DISABLE_XET=1``), for datasets and models, and misbehaves on demand.
"""

import json
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import Refused, Repo

ROUTES = []
"""(method, pattern, name, function) of every endpoint, in the order in which they are tried."""
API = r"/api/(?P<kind>dataset|model)s/(?P<repo>[^/]+/[^/]+)"
FILES = r"/(?:(?P<kind>dataset)s/)?(?P<repo>[^/]+/[^/]+)"


def route(name, method, pattern):
    def add(function):
        ROUTES.append((method, re.compile(pattern), name, function))
        return function

    return add


@dataclass
class Fault:
    """What the next requests to an endpoint meet.

    ``status`` answers with it; ``drop_after`` reads so many bytes of the request's body and resets the connection; ``stall``
    never answers; ``lost`` does what was asked and resets the connection instead of answering. ``skip`` requests pass first.
    """

    times: int = 1
    status: int | None = None
    headers: dict = field(default_factory=dict)
    message: str = "a fault of the tests"
    drop_after: int | None = None
    stall: bool = False
    lost: bool = False
    skip: int = 0


class HubServer:
    """Context manager. ``token`` may write to ``org`` and ``writer``; ``asked`` counts requests by endpoint."""

    token = "hf_tokenOfTheTests0123456789"

    def __init__(self, page=1000, part=None):
        self.repos, self.faults, self.asked = {}, {}, Counter()
        self.puts, self.unknown, self.tokens = [], [], set()
        self.page, self.part, self.parts = page, part, {}
        self.lock, self.closing, self.stalled = threading.RLock(), threading.Event(), threading.Event()
        self.hold = None
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def fault(self, endpoint, **what):
        """Let an endpoint misbehave; see :class:`Fault`."""
        assert any(endpoint == name for _, _, name, _ in ROUTES), endpoint
        self.faults.setdefault(endpoint, []).append(Fault(**what))

    def add_repo(self, kind, name, **what):
        self.repos[kind, name] = Repo(kind, name, **what)
        return self.repos[kind, name]

    def repo(self, kind, name):
        return self.repos[kind, name]

    def next_fault(self, endpoint):
        with self.lock:
            waiting = self.faults.get(endpoint, [])
            for fault in waiting:
                if fault.skip:
                    fault.skip -= 1
                    return None
                if fault.times:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server_hub: HubServer

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except OSError:  # the client went away
            self.close_connection = True

    def answer(self):
        hub, address = self.server_hub, urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.unread, path = int(self.headers.get("Content-Length") or 0), unquote(address.path)
        for method, pattern, name, function in ROUTES:
            found = pattern.fullmatch(path)
            if found and method in (self.command, "GET" if self.command == "HEAD" else None):
                hub.asked[name] += 1
                return self.meet(name, function, found.groupdict())
        hub.unknown.append((self.command, path))
        self.read()
        return self.send_json({"error": "no such page"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def meet(self, name, function, found):
        hub = self.server_hub
        fault = hub.next_fault(name)
        if fault and fault.drop_after is not None:
            self.rfile.read(min(fault.drop_after, self.unread))
            return self.reset()
        if fault and fault.stall:
            hub.stalled.set()
            hub.closing.wait()
            return self.reset()
        self.body = self.read()
        if fault and fault.status:
            headers = {"X-Error-Message": fault.message, **fault.headers}
            return self.send_json({"error": fault.message}, fault.status, headers)
        try:
            with hub.lock:
                reply = function(self, **self.checked(name, found))
        except Refused as refused:
            code = {"X-Error-Code": refused.code} if refused.code else {}
            return self.send_json({"error": refused.message}, refused.status, code | {"X-Error-Message": refused.message})
        if fault and fault.lost:
            return self.reset()
        if callable(reply):
            return reply()  # without the lock: a reader may stop in the middle of a long body and ask for something else
        return None if reply is None else self.send_json(*reply) if isinstance(reply, tuple) else self.send_json(reply)

    def checked(self, name, found):
        """Arguments of an endpoint, with the repository itself; refuses those who may not."""
        hub, said = self.server_hub, self.headers.get("Authorization")
        if said:
            hub.tokens.add(said)
        known = said == f"Bearer {hub.token}"
        if said and not known:
            raise Refused(401, "Invalid credentials in Authorization header")
        if name in ("put", "complete"):  # their addresses are signed
            return found
        if "repo" in found:
            repo = hub.repos.get((found.pop("kind") or "model", found["repo"]))
            if repo is None or (repo.private and not known):
                raise Refused(404 if known else 401, "Repository not found", "RepoNotFound")
            if repo.gated and name == "resolve" and not known:
                raise Refused(401, "Access to this repository is restricted", "GatedRepo")
            found["repo"] = repo
        if not known and ((self.command not in ("GET", "HEAD") and name != "paths-info") or name == "whoami"):
            raise Refused(401, "Invalid username or password.")
        if "repo" in found and self.command not in ("GET", "HEAD") and name != "paths-info":
            self.may_write(found["repo"].id)
        return found

    def may_write(self, name):
        if name.partition("/")[0] not in ("org", "writer"):
            raise Refused(403, "you must use a write token to upload to a repository of this namespace")

    def read(self):
        length, self.unread = self.unread, 0
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reset(self):
        """Break the connection so that the client's system says so."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def send_json(self, value, status=200, headers=()):
        self.send_bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **dict(headers)})

    def send_bytes(self, body, status, headers):
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass

    def json(self):
        return json.loads(self.body)


@route("whoami", "GET", "/api/whoami-v2")
def whoami(request):
    return {"type": "user", "name": "writer", "fullname": "Writer", "orgs": [{"name": "org"}], "auth": {"type": "access_token"}}


@route("validate-yaml", "POST", "/api/validate-yaml")
def validate_yaml(request):
    return {"errors": [], "warnings": []}


@route("create", "POST", "/api/repos/create")
def create(request):
    hub, asked = request.server_hub, request.json()
    name, kind = f"{asked['organization'] or 'writer'}/{asked['name']}", asked.get("type", "model")
    request.may_write(name)
    url = f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if (kind, name) in hub.repos:
        return {"error": "You already created this repo", "url": url}, 409
    hub.add_repo(kind, name, private=asked.get("visibility") == "private")
    return {"url": url, "name": name}


@route("settings", "PUT", API + "/settings")
def settings(request, repo):
    asked = request.json()
    repo.gated = asked.get("gated", repo.gated)
    repo.private = asked.get("visibility", "private" if repo.private else "public") == "private"
    return {"gated": repo.gated}


@route("info", "GET", API + "(?:/revision/(?P<revision>.+))?")
def info(request, repo, revision):
    return repo.info(revision or "main")


@route("refs", "GET", API + "/refs")
def refs(request, repo):
    def told(refs, folder):
        return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in sorted(refs.items())]

    return {"branches": told(repo.branches, "heads"), "converts": [], "tags": told(repo.tags, "tags"), "pullRequests": []}


@route("tag", "POST", API + "/tag/(?P<revision>.+)")
def tag(request, repo, revision):
    name = request.json()["tag"]
    if name in repo.tags:
        raise Refused(409, "Tag reference exists already")
    repo.tags[name] = repo.commit(revision).sha
    return {}


@route("untag", "DELETE", API + "/tag/(?P<name>.+)")
def untag(request, repo, name):
    if repo.tags.pop(name, None) is None:
        raise Refused(404, "no such tag", "RevisionNotFound")
    return {}


@route("branch", "POST", API + "/branch/(?P<name>.+)")
def branch(request, repo, name):
    repo.branches.setdefault(name, repo.commit(request.json().get("startingPoint", "main")).sha)
    return {}


@route("preupload", "POST", API + "/preupload/(?P<revision>.+)")
def preupload(request, repo, revision):
    files, asked = repo.commit(revision).files, request.json()
    assert len(asked["files"]) <= 256
    told = [{"path": each["path"], "uploadMode": repo.mode(each["path"], each["size"])} for each in asked["files"]]
    kept = repo.bytes(".gitignore", revision).decode() if ".gitignore" in files else ""
    ignored = asked.get("gitIgnore", kept).split()
    for each in told:
        stored = files.get(each["path"])
        each["oid"] = (stored.sha256 or stored.oid) if stored else None
        each["shouldIgnore"] = any(fnmatch(each["path"].rpartition("/")[2], pattern) for pattern in ignored)
    return {"files": told}


@route("batch", "POST", FILES + r"\.git/info/lfs/objects/batch")
def batch(request, repo):
    hub = request.server_hub

    def told(each):
        if each["oid"] in repo.objects:
            return each
        address, header = f"{hub.url}/lfs/{repo.kind}/{repo.id}/{each['oid']}?signature=secretOfThePut", {}
        if hub.part and each["size"] > hub.part:
            header = {"chunk_size": str(hub.part)}
            header |= {f"{part + 1:05d}": f"{address}&part={part + 1}" for part in range(-(-each["size"] // hub.part))}
            upload = {"href": f"{hub.url}/lfs-complete/{repo.kind}/{repo.id}/{each['oid']}", "header": header}
        else:
            upload = {"href": address}
        return each | {"actions": {"upload": upload, "verify": {"href": f"{hub.url}/lfs-verify/{repo.kind}/{repo.id}"}}}

    return {"transfer": "multipart" if hub.part else "basic", "objects": [told(each) for each in request.json()["objects"]]}


@route("xet-token", "GET", API + "/xet-write-token/(?P<revision>.+)")
def xet_token(request, repo, revision):
    raise Refused(404, "no Xet here")


@route("put", "PUT", "/lfs/(?P<kind>dataset|model)/(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})")
def put(request, kind, repo, oid):
    hub = request.server_hub
    if hub.hold:
        hub.hold(oid)
    hub.puts.append(oid)
    if "part" in request.query:
        hub.parts[oid, int(request.query["part"])] = request.body
    else:
        hub.repos[kind, repo].receive(oid, request.body)
    request.send_bytes(b"", 200, {"ETag": f'"{len(request.body)}"'})


@route("complete", "POST", "/lfs-complete/(?P<kind>dataset|model)/(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})")
def complete(request, kind, repo, oid):
    repo, parts = request.server_hub.repos[kind, repo], sorted(part for part in request.server_hub.parts if part[0] == oid)
    assert [part["partNumber"] for part in request.json()["parts"]] == [number for _, number in parts]
    repo.receive(oid, b"".join(request.server_hub.parts.pop(part) for part in parts))
    return {}


@route("verify", "POST", "/lfs-verify/(?P<kind>dataset|model)/(?P<repo>[^/]+/[^/]+)")
def verify(request, repo):
    asked = request.json()
    if len(repo.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, "no such object")
    return {}


@route("commit", "POST", API + "/commit/(?P<revision>.+)")
def commit(request, repo, revision):
    sha = repo.apply(revision, [json.loads(line) for line in request.body.splitlines()])
    prefix = "datasets/" if repo.kind == "dataset" else ""
    return {"commitUrl": f"{request.server_hub.url}/{prefix}{repo.id}/commit/{sha}", "commitOid": sha, "success": True}


@route("tree", "GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(request, repo, revision, folder):
    hub, recursive = request.server_hub, request.query.get("recursive", "false").lower() in ("true", "1")
    told, start = repo.tree(revision, folder or "", recursive), int(request.query.get("cursor", 0))
    link = {}
    if start + hub.page < len(told):
        here = urlsplit(request.path).path
        more = f"recursive={recursive}&cursor={start + hub.page}"
        link = {"Link": f'<{hub.url}{here}?{more}>; rel="next"'}
    return told[start : start + hub.page], 200, link


@route("paths-info", "POST", API + "/paths-info/(?P<revision>.+)")
def paths_info(request, repo, revision):
    files, told = repo.commit(revision).files, []
    for path in parse_qs(request.body.decode()).get("paths", []):
        if path in files:
            told.append(files[path].told(path))
        elif any(each.startswith(f"{path}/") for each in files):
            told.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
    return told


@route("resolve", "GET", FILES + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request, repo, revision, path):
    found = repo.commit(revision)
    body, stored = repo.bytes(path, revision), found.files[path]
    headers = {"X-Repo-Commit": found.sha, "ETag": f'"{stored.oid}"', "Accept-Ranges": "bytes"}
    if stored.sha256:
        headers |= {"X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(stored.size)}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not asked:
        return partial(request.send_bytes, body, 200, headers)
    first, last = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1)
    if first > last:
        raise Refused(416, "Range Not Satisfiable")
    headers |= {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
    return partial(request.send_bytes, body[first : last + 1], 206, headers)


@route("squash", "POST", API + "/super-squash/(?P<name>.+)")
def squash(request, repo, name):
    repo.squash(name, request.json()["message"])
    return {}


@route("lfs-files", "GET", API + "/lfs-files")
def lfs_files(request, repo):
    names = {stored.sha256: path for each in repo.commits.values() for path, stored in each.files.items() if stored.sha256}
    return [
        {
            "fileOid": oid,
            "oid": oid,
            "filename": names.get(oid, "unknown"),
            "pushedAt": "2026-01-01T00:00:00.000Z",
            "ref": "main",
            "size": len(content),
        }
        for oid, content in repo.objects.items()
    ]


@route("lfs-delete", "POST", API + "/lfs-files/batch")
def lfs_delete(request, repo):
    for oid in request.json()["deletions"]["sha"]:
        repo.objects.pop(oid, None)
    return {}
