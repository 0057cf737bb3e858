"""Publish what was made to the Hub: a checkpoint (here), or a dataset directory (:mod:`curation.publish`).

A checkpoint is published whole: the layout wants every part in one folder, and one that borrowed parts of another repository
would break with it. Only safetensors, JSON and text go up; the training record without what old versions told of the machine;
and the card that this record makes. Afterwards the repository is loaded by its name from an empty cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from animeshooter_dataset import DataError
from curation.hub import Gate, Local, Remote, Repository, Told, next_version
from curation.hub_calls import PATIENCE
from curation.lines import one_line
from curation.optout import OptOut
from curation.publish import Published, may_pass_on, publish_dataset
from curation.reload import Amount
from recipes.record import RECORD_VERSION, SAMPLES, chain, public, read_films, read_record

KINDS = (".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".model")
"""Endings of files that are published: weights without code, settings, tokenizers (``.model`` is sentencepiece's)."""
MEDIA = (".mp4", ".jpg", ".png")
"""Endings that are published of sample stories besides."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
TEXTS = ("README", "LICENSE", "LICENCE", "NOTICE")
"""Names without their ending of further files that may lie in the checkpoint's own folder."""
NAMED = 3
"""Films that a message names; it counts the others."""
OF_DATASETS = {"decode": "--no-decode"}
OF_MODELS = {"data": "--data", "opt_out": "--opt-out", "datasets": "--dataset", "keep_card": "--keep-card"}
"""Arguments that only one of the two takes, and their options."""


@dataclass(frozen=True)
class PublishedModel(Published):
    """As for a dataset; ``loaded`` are the parts that loaded from the Hub with the same weights, ``notes`` what to know."""

    loaded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What to tell a user, in a few lines."""
        again = [f"loaded again from a clean cache: {', '.join(self.loaded)} have the same weights"] if self.loaded else []
        return [*(f"note: {note}" for note in self.notes), *super().lines(), *again]


def publish(path: Path, repo_id: str, **options: Any) -> Published:
    """Publish a dataset directory or a checkpoint, whichever ``path`` is.

    Args:
        path: the folder.
        repo_id: ``ORG/NAME``.
        **options: of :func:`publish_model`, or of :func:`curation.publish.publish_dataset`; most are of both.

    Raises:
        DataError: it is neither, an option is of the other, or it cannot be published.
    """
    run: Callable[..., Published]
    if (path / "manifest.json").is_file():
        what, other, run = "a dataset directory", OF_MODELS, publish_dataset
    elif (path / "model_index.json").is_file() or (path / "training.json").is_file():
        what, other, run = "a checkpoint", OF_DATASETS, publish_model
    else:
        raise DataError(f"{path}: neither a dataset directory (no manifest.json) nor a checkpoint (no model_index.json)")
    wrong = [option for name, option in other.items() if name in options]
    if wrong:
        raise DataError(f"{path}: is {what}, which {wrong[0]} is not for; leave it out")
    return run(path, repo_id, **options)


def publish_model(
    checkpoint: Path,
    repo_id: str,
    *,
    private: bool = False,
    gated: Gate | None = None,
    rights_cleared: bool = False,
    dry_run: bool = False,
    purge_history: bool = False,
    verify: Amount = "sample",
    message: str | None = None,
    data: Path | None = None,
    opt_out: Sequence[Path] = (),
    datasets: Sequence[str] = (),
    keep_card: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
    patience: Sequence[float] = PATIENCE,
    say: Callable[[str], None] | None = None,
    progress: Told | None = None,
) -> PublishedModel:
    """Publish a checkpoint and load it back; run it again to go on where an earlier run was stopped.

    Args:
        checkpoint: folder that a training stage wrote; nothing is written into it.
        repo_id: ``ORG/NAME``.
        private: make a new repository private; one that is public is refused.
        gated: who reads must ask for access, granted at once ("auto") or by hand ("manual"); None leaves it as it is.
        rights_cleared: the publisher has the right to pass on what films whose licence does not say so have taught it.
        dry_run: only say what would be done.
        purge_history: afterwards delete, for good, every earlier version and every large file that this one does not use.
        verify: unless "none", load the model by its name from an empty cache; takes about the model's memory. Hashes of all
            files are compared in any case.
        message: title of the commit.
        data: the dataset directory it was trained on, as it is today: were its films withdrawn since?
        opt_out: further lists of films that are not to be used.
        datasets: Hub repositories of what it was trained on, for the card.
        keep_card: publish the checkpoint's own README.md in place of the card made from the record.
        token: None for the one of ``hf auth login`` or HF_TOKEN.
        endpoint: None for HF_ENDPOINT, or the Hub.
        cache: where hashes are remembered; by default in the user's cache folder.
        patience: seconds to wait before each further attempt of a call.
        say: told what happens, a line at a time.
        progress: told after each group of files.

    Raises:
        DataError: it is no whole checkpoint, holds what is not published, may not be public, the Hub refuses it or cannot be
            reached, or what is there afterwards is not what was sent.
    """
    repository = Repository(repo_id, "model", token=token, endpoint=endpoint, say=say, patience=patience)
    names = files_of(checkpoint)
    extra = {"training.json": _record(checkpoint), "README.md": _card(checkpoint, repo_id, datasets, keep_card)}
    opted = OptOut.load(opt_out, _dataset(data))
    remote = repository.look()
    everybody = not (private or (remote.exists and remote.private))
    notes = tuple(rights_notes(checkpoint, opted, everybody=everybody, rights_cleared=rights_cleared))
    local = Local.of(checkpoint, files=names, extra=extra, cache=cache, progress=progress)
    if dry_run:
        plan = repository.plan(local, remote)
        version, unfinished = _version(remote, None if plan.changes else remote.head)
        return PublishedModel(repo_id, repository.url, None, version, unfinished, plan, notes=notes)
    title = message or f"AnimeShooterGen, stage {read_record(checkpoint)['stage']}"
    done = repository.upload(local, message=title, private=private, gated=gated, progress=progress)
    version, unfinished = _version(done.plan.remote, done.commit)
    loaded: tuple[str, ...] = ()
    if unfinished:
        loaded = _check(repository, local, done.commit, verify, say)
        repository.tag(version, done.commit, title)
    commit, purged = done.commit, None
    if purge_history:
        version = next_version([*done.plan.remote.tags, version], RECORD_VERSION)
        purged = repository.purge(commit, version, title)
        commit = purged.commit
        _check(repository, local, commit, "none", say)
    return PublishedModel(repo_id, repository.url, commit, version, unfinished, done.plan, 0, purged, loaded, notes)


def _version(remote: Remote, commit: str | None) -> tuple[str, bool]:
    """The tag of a commit, and whether it has to be made: a commit without one was not finished."""
    ours = re.compile(rf"v{re.escape(RECORD_VERSION)}\.\d+")
    known = [name for name, at in remote.tags.items() if at == commit and ours.fullmatch(name)]
    return (known[0], False) if known else (next_version(remote.tags, RECORD_VERSION), True)


def _check(
    repository: Repository, local: Local, commit: str, verify: Amount, say: Callable[[str], None] | None
) -> tuple[str, ...]:
    """Compare what is on the Hub with what was sent; returns the parts that loaded from there."""
    from recipes.reload import compare

    wrong = repository.differences(local, commit)
    if wrong:
        raise DataError(f"{repository.repo_id}: after the upload {wrong[0]} ({len(wrong)} in all); publish again to mend it")
    if verify == "none":
        return ()
    if say:
        say(f"{repository.repo_id}: loading it again from a clean cache")
    return compare(
        repository.repo_id,
        commit,
        local.folder,
        endpoint=repository.api.endpoint,
        token=repository.token,
        clean=repository.calls.clean,
    )


def files_of(checkpoint: Path) -> list[str]:
    """The files of a checkpoint, all of which may be published.

    Raises:
        DataError: it is no whole checkpoint, or holds something else: pickles above all.
    """
    from model.checkpoint import resolve
    from recipes.trainer import model_errors

    if not checkpoint.is_dir():
        raise DataError(f"{checkpoint}: no such folder; name a checkpoint that a training stage wrote")
    read_record(checkpoint)
    paths = [path for path in checkpoint.rglob("*") if path.is_file()]
    inside = [path.relative_to(checkpoint) for path in paths]
    names = sorted(path.as_posix() for path in inside if not any(part.startswith(".") for part in path.parts))
    for name in names:
        ending = Path(name).suffix.lower()
        if ending in PICKLES:
            raise DataError(
                f"{checkpoint / name}: may hold a pickle, which runs code when it is loaded; save the part as safetensors"
            )
        if name.startswith(f"{SAMPLES}/") and ending in MEDIA:
            continue
        if ending not in KINDS and not ("/" not in name and Path(name).stem.upper() in TEXTS and ending in ("", ".md", ".txt")):
            raise DataError(f"{checkpoint / name}: is nothing a checkpoint is made of; move it out of the folder")
        if ending == ".safetensors":
            _check_weights(checkpoint / name)
    with model_errors():
        resolve(checkpoint)
    return names


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: no safetensors file ({error}); train or download the checkpoint again") from None


def _record(checkpoint: Path) -> bytes:
    return (json.dumps(public(read_record(checkpoint)), indent=2) + "\n").encode()


def _card(checkpoint: Path, repo_id: str, datasets: Sequence[str], keep: bool) -> bytes:
    from recipes.model_card import render_model_card

    for name in datasets:
        Repository(name, "dataset")  # refuses what is no name
    if not keep:
        return render_model_card(checkpoint, repo_id=repo_id, datasets=datasets).encode()
    try:
        return (checkpoint / "README.md").read_bytes()
    except OSError:
        raise DataError(f"{checkpoint / 'README.md'}: not there; write it, or leave out --keep-card") from None


def _dataset(data: Path | None) -> Path | None:
    if data is not None and not (data / "rights.jsonl").is_file():
        raise DataError(f"{data}: not a dataset directory (no rights.jsonl); name the one the checkpoint was trained on")
    return data


def rights_notes(checkpoint: Path, opted: OptOut, *, everybody: bool, rights_cleared: bool) -> list[str]:
    """What a publisher is to know of the films that trained a checkpoint.

    Raises:
        DataError: everybody would have it, and a film is withdrawn, or its licence does not allow that and nobody cleared it.
    """
    films, mend = read_films(checkpoint), "train anew without, or publish with --private"
    gone = [film["video"] for film in films or [] if _withdrawn(film, opted)]
    if gone and everybody:
        raise DataError(f"{checkpoint}: trained on {_some(gone)}, not to be used any more; {mend}")
    notes = []
    bound = [
        f"{film['video']} ({film.get('licence') or 'no licence stated'})"
        for film in films or []
        if not may_pass_on(film.get("licence"))
    ]
    if bound:
        notes.append(f"{checkpoint}: trained on {_some(bound)}, whose licence does not allow passing on what is made of it")
    words = sorted({text for film in films or [] for text in film.get("annotation_licences", []) if not may_pass_on(text)})
    if words:
        notes.append(f"{checkpoint}: the licence of captions it was trained on ({_some(words)}) does not allow passing them on")
    entries = chain(read_record(checkpoint))
    if films is None or entries[0].get("parent") is not None or not all("record" in entry for entry in entries):
        notes.append(f"{checkpoint}: which films trained it was not recorded in full, nor under which licences")
    if notes and everybody and not rights_cleared:
        raise DataError(f"{notes[0]}; publish with --private, or with --rights-cleared if you hold the right to")
    return [f"{checkpoint}: trained on {_some(gone)}, not to be used any more"] * bool(gone) + notes


def _withdrawn(film: dict[str, Any], opted: OptOut) -> bool:
    known = {"id": film["video"], "sha256": film.get("sha256"), "address": film.get("source"), "uploader": film.get("uploader")}
    return opted.match(**known) is not None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(map(one_line, names[:NAMED]))}{more}"
