"""Repositories of a mock Hub, in memory: commits, branches, tags, git blobs and LFS objects."""

import hashlib
from dataclasses import dataclass, field

LARGE = (".tar", ".parquet", ".safetensors", ".bin", ".flac", ".mp4")
"""What a new repository's ``.gitattributes`` sends to LFS."""
BIG = 10 * 2**20
"""Other files of at least so many bytes go to LFS too."""


class Refused(Exception):
    """An answer other than 200: status, message, and the code that clients look at."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Stored:
    """A file of a commit: its size, its git id, and the sha256 of its LFS object if it is one."""

    size: int
    oid: str
    sha256: str | None = None

    def told(self, path):
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.sha256 else {}
        return {"type": "file", "path": path, "size": self.size, "oid": self.oid, **lfs}


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict


def git_id(content, kind="blob"):
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def pointer(sha256, size):
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass
class Repo:
    """One repository; a new one has a first commit with ``.gitattributes``, as on the Hub."""

    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=dict)
    objects: dict = field(default_factory=dict)
    made: int = 0

    def __post_init__(self):
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE).encode()
        self.add_commit("main", "initial commit", None, {".gitattributes": self.blob(attributes)})

    def add_commit(self, branch, title, parent, files):
        self.made += 1
        sha = hashlib.sha1(f"{self.kind} {self.id} {self.made} {title}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, files)
        self.branches[branch] = sha
        return sha

    def blob(self, content):
        oid = git_id(content)
        self.blobs[oid] = content
        return Stored(len(content), oid)

    def commit(self, revision):
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    @property
    def head(self):
        return self.commits[self.branches["main"]]

    def bytes(self, path, revision="main"):
        """The content of a file of a revision."""
        stored = self.commit(revision).files.get(path)
        if stored is None:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return self.objects[stored.sha256] if stored.sha256 else self.blobs[stored.oid]

    def log(self, branch="main"):
        """Titles of a branch's commits, newest first."""
        found, sha = [], self.branches[branch]
        while sha:
            found.append(self.commits[sha].title)
            sha = self.commits[sha].parent
        return found

    def mode(self, path, size):
        return "lfs" if path.endswith(LARGE) or size >= BIG else "regular"

    def receive(self, oid, content):
        """Take an LFS object, if it is what it says."""
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "content does not match the object id")
        self.objects[oid] = content

    def apply(self, branch, lines):
        """Commit the operations that a client sent, all of them or none."""
        from base64 import b64decode

        header = lines[0]["value"]
        if branch not in self.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        parent = self.branches[branch]
        if header.get("parentCommit") not in (None, parent):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files, new = dict(self.commits[parent].files), {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = self.blob(b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, "Your push was rejected because an LFS pointer pointed to a file that does not exist")
                size = len(self.objects[value["oid"]])
                new[value["path"]] = Stored(size, git_id(pointer(value["oid"], size)), value["oid"])
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[value["path"]]
        return self.add_commit(branch, header["summary"], parent, files | new)

    def tree(self, revision, folder="", recursive=True):
        """Files of a revision, and the folders that hold them, as the API tells them."""
        prefix, told, folders = f"{folder}/" if folder else "", [], set()
        for path, stored in sorted(self.commit(revision).files.items()):
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folders.add(prefix + "/".join(parts[:depth]))
            if recursive or len(parts) == 1:
                told.append(stored.told(path))
        if folder and not told and not folders:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return [
            *({"type": "directory", "path": path, "size": 0, "oid": git_id(path.encode())} for path in sorted(folders)),
            *told,
        ]

    def squash(self, branch, message):
        self.add_commit(branch, message, None, self.commit(branch).files)
        reachable = {*self.branches.values(), *self.tags.values()}
        for sha in list(self.commits):  # what nothing points to any more is gone
            if sha not in reachable and not any(sha in self.ancestors(each) for each in reachable):
                del self.commits[sha]

    def ancestors(self, sha):
        found = set()
        while sha:
            found.add(sha)
            sha = self.commits[sha].parent
        return found

    def info(self, revision):
        commit = self.commit(revision)
        return {
            "_id": self.id,
            "id": self.id,
            "sha": commit.sha,
            "private": self.private,
            "gated": self.gated,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
