"""Folders of files to repositories of the Hugging Face Hub, datasets and models alike, over lines that break.

Large files are sent first and are seen by nobody; then one commit adds, replaces and deletes, so that readers find the old
state or the new one and never half of one. A run that was stopped is simply run again: what the Hub has is not sent again,
and files are not hashed again. Nothing is written into the folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from animeshooter_dataset import DataError
from curation.hub_calls import PATIENCE, Calls
from curation.hub_files import Local, LocalFile, Progress, Told
from curation.lines import one_line

__all__ = [
    "KEPT",
    "Gate",
    "Kind",
    "Local",
    "LocalFile",
    "Plan",
    "Progress",
    "Purged",
    "Remote",
    "Repository",
    "Told",
    "Uploaded",
    "next_version",
]

Kind = Literal["dataset", "model"]
Gate = Literal["auto", "manual"]
MOST_FILES = 25_000
"""Files of one commit, by the documentation of ``HfApi.create_commit``."""
MOST_IN_FOLDER = 10_000
"""Files of one folder of a repository, by the Hub's documentation of its limits."""
GROUP_FILES, GROUP_BYTES = 64, 2 * 2**30
"""A group of files that is sent together ends at either; what is done is known after each group."""
THREADS = 4
"""Files sent at a time."""
VERSION = re.compile(r"v\d+\.\d+\.\d+")
"""Tags of versions."""
KEPT = (".gitattributes",)
"""Files of a repository that are the Hub's own."""
REPO_ID = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w-]*(\.[\w-]+)*", re.ASCII)


@dataclass(frozen=True)
class Remote:
    """What the Hub holds: ``files`` are (size, git id, sha256 or None) by path, ``tags`` commits by name."""

    exists: bool
    user: str = ""
    private: bool = False
    gated: str | None = None
    head: str | None = None
    files: Mapping[str, tuple[int, str, str | None]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    branches: tuple[str, ...] = ()

    def has(self, file: LocalFile) -> bool:
        """Whether a file is there as it is here."""
        size, git_id, sha256 = self.files.get(file.path, (-1, "", None))
        return size == file.size and (sha256 == file.sha256 if sha256 else git_id == file.git_id())


@dataclass(frozen=True)
class Plan:
    """What an upload does: paths to send and to delete, how many stay, and the bytes of those to send."""

    remote: Remote
    send: tuple[str, ...]
    delete: tuple[str, ...]
    same: int
    bytes: int

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.send or self.delete)


@dataclass(frozen=True)
class Uploaded:
    """The state after an upload; ``changed`` is False when the Hub had it all, and then nothing was committed."""

    repo_id: str
    kind: Kind
    url: str
    commit: str
    changed: bool
    plan: Plan


@dataclass(frozen=True)
class Purged:
    """What a purge took away, and the refs it could not touch (``refs/convert/parquet``, pull requests)."""

    commit: str
    tags: tuple[str, ...]
    objects: int
    bytes: int
    left: tuple[str, ...]


class Repository:
    """One repository of the Hub.

    Args:
        repo_id: ``ORG/NAME``.
        kind: "dataset" or "model".
        revision: the branch; made from ``main`` if it is missing.
        token: None for the one of ``hf auth login`` or HF_TOKEN.
        endpoint: None for HF_ENDPOINT, or the Hub.
        say: told about waiting and trying again, a line at a time.
        patience: seconds to wait before each further attempt of a call.

    Raises:
        DataError: the name is none.
    """

    def __init__(
        self,
        repo_id: str,
        kind: Kind,
        *,
        revision: str = "main",
        token: str | None = None,
        endpoint: str | None = None,
        say: Callable[[str], None] | None = None,
        patience: Sequence[float] = PATIENCE,
    ) -> None:
        from huggingface_hub import HfApi, get_token

        if not REPO_ID.fullmatch(repo_id) or len(repo_id) > 96:
            raise DataError(
                f"{one_line(repo_id)}: no name of a repository; it is ORG/NAME, of letters, digits, '-', '_' and '.'"
            )
        self.repo_id, self.kind, self.revision = repo_id, kind, revision
        self.token = token or get_token()
        self.api = HfApi(endpoint=endpoint, token=self.token)
        self.where: dict[str, Any] = {"repo_id": repo_id, "repo_type": kind}
        self.calls = Calls(repo_id, self.token, say, patience)

    @property
    def url(self) -> str:
        """Its page."""
        return f"{self.api.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo_id}"

    def look(self) -> Remote:
        """What is there now; changes nothing, and gives up sooner than an upload does.

        Raises:
            DataError: not logged in, or the Hub cannot be reached.
        """
        if self.token is None:
            raise DataError(
                f"{self.repo_id}: you are not logged in; run `hf auth login`, or set HF_TOKEN to a token that may write"
            )
        short = self.calls.patience[:2]
        with self.calls.together():
            user = self.calls("asking who the token belongs to", self.api.whoami, patience=short)["name"]
            return self.calls("reading the repository", lambda: self._look(user), patience=short)

    def _look(self, user: str) -> Remote:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self.api.repo_info(**self.where)
        except RepositoryNotFoundError as error:
            if error.response is not None and error.response.status_code == 401:
                raise
            return Remote(exists=False, user=user)
        refs = self.api.list_repo_refs(**self.where)
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        head = branches.get(self.revision)
        tags = {ref.name: ref.target_commit for ref in refs.tags}
        newest = max(
            filter(VERSION.fullmatch, tags), key=lambda name: [int(part) for part in name[1:].split(".")], default=None
        )
        if newest and tags[newest] != head:  # a tag with a message may be told by an id of its own
            tags[newest] = str(self.api.repo_info(**self.where, revision=newest).sha)
        return Remote(
            exists=True,
            user=user,
            private=bool(info.private),
            gated=info.gated or None,
            head=head,
            files=self._files(head) if head else {},
            tags=tags,
            branches=tuple(sorted(branches)),
        )

    def _files(self, commit: str) -> dict[str, tuple[int, str, str | None]]:
        from huggingface_hub.hf_api import RepoFile

        entries = self.api.list_repo_tree(**self.where, recursive=True, revision=commit)
        files = (entry for entry in entries if isinstance(entry, RepoFile))
        return {file.path: (file.size, file.blob_id, file.lfs.sha256 if file.lfs else None) for file in files}

    def plan(self, local: Local, remote: Remote | None = None) -> Plan:
        """What an upload of these files would do; changes nothing.

        Raises:
            DataError: the Hub cannot be reached, or there are more files than a repository may have.
        """
        remote = remote or self.look()
        send = tuple(name for name, file in local.files.items() if not remote.has(file))
        delete = tuple(sorted(remote.files.keys() - local.files.keys() - set(KEPT)))
        folders: dict[str, int] = {}
        for name in local.files:
            folders[name.rpartition("/")[0]] = folders.get(name.rpartition("/")[0], 0) + 1
        most = max(folders.values(), default=0)
        if len(send) + len(delete) > MOST_FILES or most > MOST_IN_FOLDER:
            raise DataError(
                f"{local.folder}: {len(local.files)} files, {most} in one folder; the Hub takes {MOST_FILES} a commit and "
                f"{MOST_IN_FOLDER} a folder; build with larger shards (--set shard_size=)"
            )
        same = len(local.files) - len(send)
        return Plan(remote, send, delete, same, sum(local.files[name].size for name in send))

    def upload(
        self,
        local: Local,
        *,
        message: str,
        private: bool = False,
        gated: Gate | None = None,
        progress: Told | None = None,
    ) -> Uploaded:
        """Make the repository hold these files and no others, in one commit; run again to go on after an interruption.

        Args:
            local: the files.
            message: title of the commit.
            private: make a new repository private, and refuse one that is public.
            gated: who reads must ask for access, granted at once ("auto") or by hand ("manual"); None leaves it as it is.
            progress: told after each group of files.

        Raises:
            DataError: the Hub refuses or cannot be reached, or a file changed meanwhile. Nobody sees anything of it then.
        """
        with self.calls.together():
            return self._upload(local, message, private, gated, progress)

    def _upload(self, local: Local, message: str, private: bool, gated: Gate | None, progress: Told | None) -> Uploaded:
        remote = self.look()
        self._check_private(remote, private)
        self.plan(local, remote)  # refuses before anything is made
        if not remote.exists:
            self.calls("making the repository", lambda: self.api.create_repo(**self.where, private=private, exist_ok=True))
        if gated and remote.gated != gated:
            self.calls("setting who may read", lambda: self.api.update_repo_settings(**self.where, gated=gated))
        if self.revision not in (*remote.branches, "main"):
            self.calls("making the branch", lambda: self.api.create_branch(**self.where, branch=self.revision, exist_ok=True))
        if remote.head is None:
            remote = self.calls("reading the repository", lambda: self._look(remote.user))
            self._check_private(remote, private)  # somebody may have made it meanwhile
            if remote.head is None:
                raise DataError(f"{self.repo_id}: has no branch {self.revision}; look at its page and run again")
        plan = self.plan(local, remote)
        commit = str(remote.head)
        if plan.changes:
            operations = self._send(local, plan, progress)
            for file in local.files.values():
                file.check()
            commit = self.calls("committing", lambda: self._commit(local, operations, message, str(remote.head)))
        return Uploaded(self.repo_id, self.kind, self.url, commit, plan.changes, plan)

    def _check_private(self, remote: Remote, private: bool) -> None:
        if remote.exists and private and not remote.private:
            raise DataError(
                f"{self.repo_id}: is public; make it private in its settings, choose another name, or leave out --private"
            )

    def _send(self, local: Local, plan: Plan, progress: Told | None) -> list[Any]:
        """Send the large files of a plan, a group at a time; returns the operations of its commit."""
        from huggingface_hub import CommitOperationDelete

        operations: list[Any] = [CommitOperationDelete(path, is_folder=False) for path in plan.delete]
        files, size = 0, 0
        for group in _groups([local.files[name] for name in plan.send]):
            made = [_operation(file) for file in group]
            self.calls(
                f"sending {group[0].path}" + (f" and {len(group) - 1} more" if len(group) > 1 else ""),
                lambda made=made: self.api.preupload_lfs_files(  # type: ignore[misc]
                    self.repo_id,
                    made,
                    repo_type=self.kind,
                    revision=self.revision,
                    num_threads=THREADS,
                    free_memory=False,
                    gitignore_content="",  # else a .gitignore in the repository drops files in silence
                ),
            )
            operations.extend(made)
            files, size = files + len(group), size + sum(file.size for file in group)
            if progress:
                progress(Progress("sending", group[-1].path, files, len(plan.send), size, plan.bytes))
        return operations

    def _commit(self, local: Local, operations: list[Any], message: str, head: str) -> str:
        """Commit on top of ``head``; if the answer was lost on the way, see whether the commit is there."""
        try:
            done = self.api.create_commit(
                **self.where, operations=operations, commit_message=message, revision=self.revision, parent_commit=head
            )
        except Exception:
            with suppress(Exception):
                now = str(self.api.repo_info(**self.where, revision=self.revision).sha)
                if now != head and not self._differences(local, now):
                    return now
            raise
        return str(done.oid)

    def differences(self, local: Local, commit: str) -> list[str]:
        """What a commit holds otherwise than here, one line a file; by hashes, so that nothing is downloaded.

        Raises:
            DataError: the Hub cannot be reached.
        """
        return self.calls("comparing hashes", lambda: self._differences(local, commit))

    def _differences(self, local: Local, commit: str) -> list[str]:
        remote = Remote(exists=True, files=self._files(commit))
        wrong = [
            f"{name}: {'differs' if name in remote.files else 'is missing'} on the Hub"
            for name, file in local.files.items()
            if not remote.has(file)
        ]
        return wrong + [f"{name}: only on the Hub" for name in sorted(remote.files.keys() - local.files.keys() - set(KEPT))]

    def tag(self, name: str, commit: str, message: str | None = None) -> None:
        """Give a commit a name.

        Raises:
            DataError: another commit has it; or the Hub refuses.
        """
        self.calls(
            f"tagging {name}",
            lambda: self.api.create_tag(**self.where, tag=name, revision=commit, tag_message=message, exist_ok=True),
        )
        tagged = self.calls(f"reading the tag {name}", lambda: self.api.repo_info(**self.where, revision=name).sha)
        if tagged != commit:
            raise DataError(f"{self.repo_id}: somebody else published {name} meanwhile; look at its page and run again")

    def purge(self, commit: str, version: str, message: str) -> Purged:
        """Leave the newest state of the branch and nothing older: one commit, one tag, the large files it uses. No way back.

        Args:
            commit: the newest state, as whoever calls knows it.
            version: the tag of what stays; it must be a new one.
            message: title of the commit that stands for the history.

        Raises:
            DataError: the branch has moved on, or there are other branches, whose files would go too; or the Hub refuses.
        """
        with self.calls.together():
            return self._purge(commit, version, message)

    def _purge(self, commit: str, version: str, message: str) -> Purged:
        before = self.look()
        others = [name for name in before.branches if name != self.revision]
        if others:
            raise DataError(
                f"{self.repo_id}: has the branch {others[0]}, which a purge would break; delete it on the Hub first"
            )
        if before.head != commit:
            raise DataError(f"{self.repo_id}: somebody else changed it meanwhile; nothing was purged, run again")
        squash = {"branch": self.revision, "commit_message": message}
        self.calls("squashing the history", lambda: self.api.super_squash_history(**self.where, **squash))
        self.tag(version, self._head(), message)  # before the others go: numbers of versions are counted by tags
        old = [name for name in before.tags if name != version]
        for name in old:
            self.calls(f"deleting the tag {name}", lambda name=name: self._untag(name))  # type: ignore[misc]
        dropped = self._drop_unused({sha256 for _, _, sha256 in before.files.values() if sha256})
        head = self._head()
        if self.calls(f"reading the tag {version}", lambda: self.api.repo_info(**self.where, revision=version).sha) != head:
            self.calls(f"moving the tag {version}", lambda: self._untag(version))  # dropping files rewrote the history
            self.tag(version, head, message)
        refs = self.calls("looking for what is left", lambda: self.api.list_repo_refs(**self.where, include_pull_requests=True))
        left = tuple(ref.ref for ref in (*refs.converts, *(refs.pull_requests or ())))
        return Purged(head, tuple(old), len(dropped), sum(dropped.values()), left)

    def _head(self) -> str:
        return str(self.calls("reading the repository", lambda: self.api.repo_info(**self.where, revision=self.revision).sha))

    def _drop_unused(self, used: set[str]) -> dict[str, int]:
        """Delete large files for good, but those of ``used``; returns their sizes by hash."""
        dropped: dict[str, int] = {}

        def drop() -> None:  # lists anew when it is tried again: some may be gone
            unused = [each for each in self.api.list_lfs_files(**self.where) if not {each.file_oid, each.oid} & used]
            dropped.update({each.file_oid: each.size for each in unused})
            if unused:
                self.api.permanently_delete_lfs_files(self.repo_id, unused, repo_type=self.kind)

        self.calls("deleting large files that are not used", drop)
        return dropped

    def _untag(self, name: str) -> None:
        from huggingface_hub.errors import RevisionNotFoundError

        with suppress(RevisionNotFoundError):  # an earlier attempt's answer was lost
            self.api.delete_tag(**self.where, tag=name)


def next_version(tags: Iterable[str], schema: str) -> str:
    """The tag after those that are there: ``v<schema>.<n>``, where ``n`` begins at 0 and only grows."""
    numbers = [int(found[1]) for tag in tags if (found := re.fullmatch(rf"v{re.escape(schema)}\.(\d+)", tag))]
    return f"v{schema}.{max(numbers, default=-1) + 1}"


def _operation(file: LocalFile) -> Any:
    """A file as the library takes it, with the hash that is known, so that it is not computed again."""
    from huggingface_hub import CommitOperationAdd

    file.check()
    made = CommitOperationAdd(file.path, file.source)
    made.upload_info.sha256 = bytes.fromhex(file.sha256)
    return made


def _groups(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    """Runs of files that are sent together."""
    group: list[LocalFile] = []
    for file in files:
        if group and (len(group) == GROUP_FILES or sum(each.size for each in group) + file.size > GROUP_BYTES):
            yield group
            group = []
        group.append(file)
    if group:
        yield group
