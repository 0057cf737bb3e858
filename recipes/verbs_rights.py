"""Verbs for what others hold and get: what can still be had, what has to go, what is published."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from recipes.command import Bar, add_verb


def add_rights_verbs(verbs: Any) -> None:
    """Add them to the parser."""
    sources = add_verb(
        verbs, "verify-sources", _verify_sources, "which sources can still be had, asked gently, with a dated report"
    )
    sources.add_argument(
        "where",
        type=Path,
        metavar="WHERE",
        help="a dataset directory, the official release (zip, folder or json), or a list (a YouTube id or address a line)",
    )
    sources.add_argument(
        "--out",
        type=Path,
        metavar="FILE.jsonl",
        help="the report (inside a dataset directory; else WHERE.availability.jsonl beside it)",
    )
    sources.add_argument(
        "--recheck-after", type=int, default=30, metavar="DAYS", help="ask again what was asked longer ago (%(default)s)"
    )
    sources.add_argument("--limit", type=int, metavar="N", help="ask at most so many sources in this run")
    sources.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between two requests to a host (%(default)s)"
    )
    sources.add_argument("--hosts", type=int, default=4, metavar="N", help="hosts asked at a time (%(default)s)")
    sources.add_argument("--json", action="store_true", help="print the report as JSON")

    takedown = add_verb(
        verbs, "takedown", _takedown, "remove films from a dataset, with everything made of them, and keep them out"
    )
    takedown.add_argument("directory", type=Path, metavar="DIR")
    takedown.add_argument(
        "films", nargs="*", metavar="FILM", help="id of a video as in rights.jsonl, or a YouTube id; see --match"
    )
    takedown.add_argument(
        "--match", choices=("id", "hash", "url", "uploader"), default="id", help="by what films are named (%(default)s)"
    )
    takedown.add_argument("--list", type=Path, nargs="+", default=[], metavar="LIST", help="every film of these opt-out lists")
    takedown.add_argument("--reason", metavar="TEXT", help="a line for removals.jsonl, which is published")
    takedown.add_argument("--work", type=Path, metavar="DIR", help="the build's --work, if it was not DIR.work")
    takedown.add_argument("--downloads", type=Path, metavar="DIR", help="the build's --downloads, if it was not DIR.films")
    takedown.add_argument("--json", action="store_true", help="print the report as JSON")

    publish = add_verb(
        verbs, "publish", _publish, "a dataset directory or a checkpoint, with its card, to the Hugging Face Hub"
    )
    publish.add_argument("path", type=Path, metavar="PATH", help="a dataset directory or a checkpoint")
    publish.add_argument(
        "repository", metavar="ORG/NAME", help="made if it is not there; sign in with hf auth login, or HF_TOKEN"
    )
    publish.add_argument("--private", action="store_true", help="only for you and your organisation")
    publish.add_argument(
        "--gated", nargs="?", const="auto", choices=("auto", "manual"), help="readers must agree first; manual: you let each in"
    )
    publish.add_argument(
        "--rights-cleared", action="store_true", help="you may pass on films whose licence is not stated or does not allow it"
    )
    publish.add_argument("--dry-run", action="store_true", help="check all, say what would be sent, send nothing")
    publish.add_argument(
        "--purge-history", action="store_true", help="after a takedown: delete all earlier versions; cannot be undone"
    )
    publish.add_argument(
        "--verify",
        choices=("sample", "all", "none"),
        default="sample",
        help="rows, or weights, loaded back from the Hub and compared (%(default)s)",
    )
    publish.add_argument("--message", metavar="TEXT", help="of the commit")
    publish.add_argument("--no-decode", action="store_true", help="of a dataset: lint it without decoding its clips")
    publish.add_argument(
        "--data", type=Path, metavar="DIR", help="of a checkpoint: the dataset as it is today, for withdrawn films"
    )
    publish.add_argument("--opt-out", type=Path, nargs="+", metavar="LIST", help="of a checkpoint: further lists")
    publish.add_argument("--dataset", nargs="+", metavar="ORG/NAME", help="of a checkpoint: its data on the Hub, for the card")
    publish.add_argument("--keep-card", action="store_true", help="of a checkpoint: its own README.md, as it is")
    publish.add_argument("--json", action="store_true", help="print the report as JSON")


def _verify_sources(options: argparse.Namespace) -> int:
    from curation.probe_source import SourcesConfig
    from curation.verify_sources import verify_sources

    config = SourcesConfig(interval=options.interval, hosts=options.hosts)
    with Bar("verify-sources") as bar:
        report = verify_sources(
            options.where,
            out=options.out,
            config=config,
            recheck_after=options.recheck_after,
            limit=options.limit,
            progress=bar.to,
        )
    print(json.dumps(report.as_dict()) if options.json else report.text())
    return 0 if report.complete else 1


def _takedown(options: argparse.Namespace) -> int:
    from animeshooter_dataset import DataError
    from curation.optout import OptOut
    from curation.takedown import takedown

    if bool(options.films) == bool(options.list):
        raise DataError("name either films or --list LIST")
    wanted = OptOut.load(options.list) if options.list else options.films
    with Bar("takedown") as bar:
        report = takedown(
            options.directory,
            wanted,
            match=options.match,
            reason=options.reason,
            work=options.work,
            downloads=options.downloads,
            progress=bar.note,
        )
    print(json.dumps(report.as_dict()) if options.json else report.text())
    return 1 if report.left else 0


def _publish(options: argparse.Namespace) -> int:
    from recipes.publish import publish

    same = ("private", "gated", "rights_cleared", "dry_run", "purge_history", "verify", "message")
    asked = {name: getattr(options, name) for name in same}
    kind = {
        "data": options.data,
        "opt_out": options.opt_out,
        "datasets": options.dataset,
        "keep_card": options.keep_card or None,
    }
    asked |= {name: value for name, value in kind.items() if value is not None}
    if options.no_decode:
        asked["decode"] = False
    with Bar("publish") as bar:
        report = publish(options.path, options.repository, **asked, say=bar.say, progress=bar.sent)
    if options.json:
        told = {name: getattr(report, name) for name in ("repo_id", "url", "commit", "version", "changed")}
        print(json.dumps(told | {"lines": list(report.lines())}))
    else:
        print("\n".join(report.lines()))
    return 0
