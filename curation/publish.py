"""``animeshooter publish DIR ORG/NAME``: a dataset directory to the Hub, checked before and after.

Nothing that lint rejects or that its films' licences forbid is published; what was published is loaded again from a clean cache
and compared. Versions are tags ``v<schema>.<n>``: the first commit of schema 1.2 is ``v1.2.0``, the next that changes something
``v1.2.1``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from animeshooter_dataset import DataError, RightsRecord, read_lines, read_manifest, splits
from curation.hub import KEPT, Gate, Local, Plan, Purged, Remote, Repository, Told, next_version
from curation.hub_calls import PATIENCE
from curation.hub_files import Hashes, default_hashes, stamp_of
from curation.reload import Amount, compare_rows
from curation.staging import fingerprint

OTHERS = ("README.md", "croissant.json", "manifest.json")
"""Files that are other on the Hub than in the directory."""
NAMED = 3
"""Problems or videos that a message names; it counts the others."""
_TERMS = r"(?:cc |creative commons )?(?:by|attribution)(?: nc| non ?commercial)?(?: sa| share ?alike)?"
_CREATIVE = rf"{_TERMS}(?: \d(?: \d)?)?(?: (?:international|unported|generic))?(?: licen[cs]e)?(?: reuse allowed)?"
_FREE = r"(?:cc ?0|cc zero|creative commons zero|public domain(?: mark)?|pdm)(?: \d(?: \d)?)?(?: universal)?"
_ADDRESS = r"https? creativecommons org (?:licenses by(?: nc)?(?: sa)?|publicdomain (?:zero|mark)) \d \d(?: [a-z]+){0,2}"
LICENCE = re.compile(rf"(?:{_CREATIVE}|{_FREE}|{_ADDRESS})(?: (?:{_CREATIVE}|{_FREE}))?")
"""Licences under which clips of a film may be passed on: CC0, public domain, CC BY, BY-SA, BY-NC, BY-NC-SA of any version, by
name, short name or address. ND is none of them: a cut clip is a derivative."""


@dataclass(frozen=True)
class Published:
    """What was published, or with ``commit`` None (a dry run) what would be.

    ``version`` is the tag of the state on the Hub; ``rows`` how many rows were loaded again and found the same.
    """

    repo_id: str
    url: str
    commit: str | None
    version: str
    changed: bool
    plan: Plan
    rows: int = 0
    purged: Purged | None = None

    def lines(self) -> list[str]:
        """What to tell a user, in a few lines."""
        plan, size = self.plan, f"{self.plan.bytes / 1e9:.3f} GB"
        counts = f"{len(plan.send)} files to send ({size}), {len(plan.delete)} to delete, {plan.same} as they are"
        if self.commit is None:
            where = f"{self.url}, {_state(plan.remote)}"
            each = [*(f"  send    {name}" for name in plan.send), *(f"  delete  {name}" for name in plan.delete)]
            return [f"would go to {where}: {counts}", *each, f"as {self.version}" if self.changed else "nothing changes"]
        done = f"{self.version} at {self.url} (commit {self.commit[:12]})"
        told = [f"published {done}: {counts.replace(' to send', ' sent').replace(' to delete', ' deleted')}"]
        if not self.changed:
            told = [f"nothing to publish: {done} is the same already"]
        if self.rows:
            told.append(f"loaded again from a clean cache: {self.rows} rows are the same")
        if self.purged:
            gone = self.purged
            left = "".join(f", {name}" for name in gone.left)
            told += [
                f"purged: the history, {len(gone.tags)} tags and {gone.objects} large files ({gone.bytes / 1e9:.3f} GB)",
                f"out of reach: copies and caches of others, and small files of commits known by their hash{left}",
            ]
        return told


def _state(remote: Remote) -> str:
    if not remote.exists:
        return "which does not exist yet"
    return f"which is {'private' if remote.private else 'public'}" + (f" and gated ({remote.gated})" if remote.gated else "")


def publish_dataset(
    directory: Path,
    repo_id: str,
    *,
    private: bool = False,
    gated: Gate | None = None,
    rights_cleared: bool = False,
    dry_run: bool = False,
    purge_history: bool = False,
    verify: Amount = "sample",
    decode: bool = True,
    message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
    patience: Sequence[float] = PATIENCE,
    say: Callable[[str], None] | None = None,
    progress: Told | None = None,
) -> Published:
    """Publish a dataset directory; run it again to go on where an earlier run was stopped.

    Args:
        directory: the dataset; nothing is written into it.
        repo_id: ``ORG/NAME``.
        private: make a new repository private; one that is public is refused.
        gated: who reads must ask for access, granted at once ("auto") or by hand ("manual"); None leaves it as it is.
        rights_cleared: the publisher has the right to pass on films whose licence does not say so.
        dry_run: only say what would be done.
        purge_history: afterwards delete, for good, every earlier version and every large file that this one does not use.
        verify: rows that are loaded again and compared: "sample" some of each config, "all" (downloads everything), "none".
            Hashes of all files are compared in any case.
        decode: let lint decode every clip; without it a lint is faster and proves less.
        message: title of the commit.
        token: None for the one of ``hf auth login`` or HF_TOKEN.
        endpoint: None for HF_ENDPOINT, or the Hub.
        cache: where hashes and the outcome of lint are remembered; by default in the user's cache folder.
        patience: seconds to wait before each further attempt of a call.
        say: told what happens, a line at a time.
        progress: told after each group of files.

    Raises:
        DataError: the dataset may not be published, or the Hub refuses or cannot be reached; one line with the mend.
    """
    say = say or (lambda line: None)
    manifest = read_manifest(directory)
    if not splits(directory):
        raise DataError(f"{directory}: has no shots to publish; if all were taken down, delete the repository on its page")
    repository = Repository(repo_id, "dataset", token=token, endpoint=endpoint, say=say, patience=patience)
    remote = repository.look()
    check_lint(directory, decode=decode, cache=cache, say=say)
    if not (private or rights_cleared or (remote.exists and remote.private)):
        check_rights(directory, manifest)
    hashes = {name: line["sha256"] for name, line in manifest["files"].items() if name not in OTHERS}
    built = Local.of(directory, files=[*hashes], hashes=hashes, cache=cache, progress=progress)
    gate = bool(gated or remote.gated)
    version, local = _versioned(directory, manifest, repository, remote, built, gate, purge_history, say)
    if dry_run:
        plan = repository.plan(local, remote)
        return Published(repo_id, repository.url, None, version, plan.changes or version not in remote.tags, plan)
    title = message or f"AnimeShooter dataset {version}"
    done = repository.upload(local, message=title, private=private, gated=gated, progress=progress)
    changed, rows, purged, commit = version not in remote.tags, 0, None, done.commit
    if changed:
        rows = _check_published(directory, repository, local, commit, verify, say)
        if not purge_history:
            repository.tag(version, commit, title)
    if purge_history:
        purged = repository.purge(commit, version, title)
        commit = purged.commit
        _check_hashes(repository, local, commit)
    return Published(repo_id, repository.url, commit, version, changed, done.plan, rows, purged)


def _versioned(
    directory: Path,
    manifest: Mapping[str, Any],
    repository: Repository,
    remote: Remote,
    built: Local,
    gated: bool,
    purge: bool,
    say: Callable[[str], None],
) -> tuple[str, Local]:
    """The tag of what is to be on the Hub, and its files: of the version that is there if nothing is new, else of the next.

    A purge is a new version too, so that what is left says its own name.
    """
    schema = str(manifest["schema_version"])
    others = remote.files.keys() - built.files.keys() - {*OTHERS, *KEPT}
    tags = [tag for tag, at in remote.tags.items() if at == remote.head and tag.startswith(f"v{schema}.")]
    if tags and not purge and not others and all(remote.has(file) for file in built.files.values()):
        local = built.adding(published_files(directory, manifest, repository, tags[0], gated=gated, say=say))
        if not repository.plan(local, remote).changes:
            return tags[0], local
    version = next_version(remote.tags, schema)
    return version, built.adding(published_files(directory, manifest, repository, version, gated=gated, say=say))


def check_lint(directory: Path, *, decode: bool, cache: Path | None, say: Callable[[str], None]) -> None:
    """Refuse a dataset that lint rejects; one that passed and has not changed since is not read again.

    Raises:
        DataError: lint finds problems; the line has the first of them.
    """
    from curation.lint import lint

    stamps = {
        path.relative_to(directory).as_posix(): stamp
        for path in sorted(directory.rglob("*"))
        if path.is_file() and (stamp := stamp_of(path))
    }
    rules = {path.name: stamp_of(path) for path in sorted(Path(__file__).parent.glob("*.*"))}
    digest = hashlib.sha256(json.dumps([stamps, rules], sort_keys=True).encode()).hexdigest()
    passed = (cache or default_hashes()) / f"{fingerprint(str(directory.resolve()))}.lint"
    with suppress(OSError, ValueError):
        if json.loads(passed.read_text()) in ({"state": digest, "decode": True}, {"state": digest, "decode": decode}):
            return
    say(f"{directory}: checking every file" + (" and every frame" if decode else ""))
    problems = lint(directory, decode=decode).problems
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise DataError(
            f"{directory}: not published, lint finds {'; '.join(problems[:NAMED])}{more}; see `animeshooter lint` and mend it"
        )
    known = Hashes(directory, cache)
    for name, line in read_manifest(directory)["files"].items():  # lint has just compared them with the files
        if name in stamps and stamp_of(directory / name) == stamps[name]:
            known.add(name, stamps[name], line["sha256"])
    known.close()
    with suppress(OSError):
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.with_suffix(".partial").write_text(json.dumps({"state": digest, "decode": decode}))
        os.replace(passed.with_suffix(".partial"), passed)


def check_rights(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to show the world what it may not have: every kept video, and the annotation, must have a licence that allows it.

    Raises:
        DataError: one has none; the line names the first videos.
    """
    mend = "publish with --private, or with --rights-cleared if you hold the right to pass it on"
    wrong = [
        f"{line.video} ({line.licence or 'no licence stated'})"
        for line in read_lines(directory / "rights.jsonl", RightsRecord)
        if line.state == "kept" and not may_pass_on(line.licence)
    ]
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise DataError(
            f"{directory}: the licence of {', '.join(wrong[:NAMED])}{more} does not allow a public repository of clips; {mend}"
        )
    annotation = (manifest.get("release") or {}).get("annotation_licence")
    if annotation and not may_pass_on(annotation):
        raise DataError(f"{directory}: the licence of its annotation ({annotation}) does not allow passing it on; {mend}")


def may_pass_on(licence: str | None) -> bool:
    """Whether a licence, as its film states it, allows anybody to pass on clips cut from the film; see :data:`LICENCE`."""
    return bool(LICENCE.fullmatch(re.sub(r"[^a-z0-9]+", " ", (licence or "").lower()).strip()))


def published_files(
    directory: Path,
    manifest: Mapping[str, Any],
    repository: Repository,
    version: str,
    *,
    gated: bool,
    say: Callable[[str], None],
) -> dict[str, bytes]:
    """The files that are other on the Hub than in the directory, see :data:`OTHERS`: they name repository and version.

    The manifest names the other two as they are there, so that lint accepts a downloaded copy.
    """
    from curation.card import render_card
    from curation.croissant import croissant

    told = {**manifest, "repository": repository.repo_id, "version": version, **({"gated": True} if gated else {})}
    extra = {"README.md": render_card(directory, told).encode()}
    try:
        extra["croissant.json"] = croissant(directory, repository.url, revision=version)
    except DataError as error:
        say(f"without Croissant metadata: {error}")
    lines = {name: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()} for name, blob in extra.items()}
    told["files"] = dict(sorted({**manifest["files"], **lines}.items()))
    extra["manifest.json"] = (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()
    return extra


def _check_published(
    directory: Path, repository: Repository, local: Local, commit: str, verify: Amount, say: Callable[[str], None]
) -> int:
    """Compare what was published with what was built; returns how many rows were compared."""
    _check_hashes(repository, local, commit)
    if verify == "none":
        return 0
    say(f"{repository.repo_id}: loading it again from a clean cache")
    return compare_rows(
        directory,
        repository.repo_id,
        commit,
        verify,
        endpoint=repository.api.endpoint,
        token=repository.token,
        clean=repository.calls.clean,
        pauses=repository.calls.patience[:2],
    )


def _check_hashes(repository: Repository, local: Local, commit: str) -> None:
    wrong = repository.differences(local, commit)
    if wrong:
        raise DataError(f"{repository.repo_id}: after the upload {wrong[0]} ({len(wrong)} in all); publish again to mend it")
