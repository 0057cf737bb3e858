"""Verbs that make a dataset directory and look into one."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from recipes.command import Bar, add_verb, add_workers


def add_dataset_verbs(verbs: Any) -> None:
    """Add them to the parser."""
    build = add_verb(verbs, "build", _build, "films to a dataset directory")
    _add_films(build)
    _add_fetching(build)
    build.add_argument(
        "--annotator",
        default="auto",
        help="captions: sidecar reads FILM.script.json, measure says only what was measured, auto takes the first that can, "
        "openai:URL#MODEL asks an OpenAI-compatible endpoint (key in ANIMESHOOTER_API_KEY or OPENAI_API_KEY), local:MODEL a "
        "model of transformers",
    )
    build.add_argument(
        "--judge", metavar="MODEL", help="openai:URL#MODEL or local:MODEL: is it animation, 2D or 3D, a good reference?"
    )
    build.add_argument("--language", default="English", help="of the captions a model writes (%(default)s)")
    build.add_argument("--budget-tokens", type=int, metavar="N", help="ask a model no more after N tokens in all")
    _add_making(build)

    release = add_verb(
        verbs, "import-release", _import_release, "the official AnimeShooter release, and its videos, to a dataset directory"
    )
    release.add_argument(
        "release",
        type=Path,
        metavar="RELEASE",
        help="dataset_anime_shooter.zip, the folder it was unpacked to, or one of its files",
    )
    release.add_argument("--audio-zip", type=Path, metavar="ZIP", help="dataset_anime_shooter_audio.zip, or its folder")
    release.add_argument(
        "--videos", type=Path, metavar="DIR", help="folder of videos: ID.mp4, 'Title [ID].mp4', Title-ID.mp4 ..."
    )
    release.add_argument("--download", action="store_true", help="fetch videos that are not in that folder, with rate limits")
    _add_fetching(release)
    _add_making(release)

    collect = add_verb(verbs, "collect", _collect, "fetch films from addresses, with rate limits; building is for another day")
    _add_films(collect)
    _add_fetching(collect)
    collect.add_argument("--json", action="store_true", help="print files and failures as JSON")

    mark = add_verb(verbs, "filter", _filter, "what other rules would keep out of training, or a dataset marked by them")
    mark.add_argument("directory", type=Path, metavar="DIR")
    mark.add_argument("--rules", type=Path, metavar="FILE", help="a rule file (the default: curation/rules.yaml)")
    mark.add_argument(
        "--out", type=Path, metavar="NEW", help="write the dataset anew, marked by these rules; media pass as they are"
    )
    mark.add_argument("--json", action="store_true", help="print the report as JSON")

    cuts = add_verb(verbs, "cuts", _cuts, "the shot boundaries of a film")
    cuts.add_argument("film", type=Path, metavar="FILM")
    cuts.add_argument("--json", action="store_true", help="print {film, fps, n_frames, cuts, gradual}")

    lint = add_verb(verbs, "lint", _lint, "check a dataset directory to the last frame")
    lint.add_argument("directory", type=Path, metavar="DIR")
    lint.add_argument("--no-decode", action="store_true", help="leave clips and pictures undecoded: faster, proves less")
    lint.add_argument("--json", action="store_true", help="print the findings as JSON")

    card = add_verb(verbs, "card", _card, "write a dataset's card anew, after an update of this project or with a contact")
    card.add_argument("directory", type=Path, metavar="DIR")
    card.add_argument("--contact", metavar="WHERE", help="mail or page for rights holders")

    stats = add_verb(verbs, "stats", _stats, "the numbers of a dataset, beside the paper's")
    stats.add_argument("directory", type=Path, metavar="DIR")
    stats.add_argument("--json", action="store_true", help="print the numbers as JSON")

    report = add_verb(verbs, "report", _report, "one page that shows a dataset, its worst cases first")
    report.add_argument("directory", type=Path, metavar="DIR")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page (DIR-report.html beside the dataset)")


def _add_films(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "films",
        nargs="*",
        metavar="FILM",
        help="films, folders, 'patterns*', lists (@FILE or FILE.txt, a line a film), https:// addresses, yt:VIDEOID",
    )


def _add_fetching(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--downloads", type=Path, metavar="DIR", help="where fetched films go, and stay (OUT.films)")
    parser.add_argument("--retry-failed", action="store_true", help="try addresses again that failed for good")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        dest="settings_changed",
        help="change any setting",
    )


def _add_making(parser: argparse.ArgumentParser) -> None:
    """How a dataset directory is made, whatever it is made of."""
    parser.add_argument("--out", type=Path, default=Path("animeshooter"), help="the dataset directory (%(default)s)")
    parser.add_argument("--short-side", type=int, default=480, help="pixels of a clip's shorter side (%(default)s)")
    parser.add_argument(
        "--rules", type=Path, metavar="FILE", help="which shots training takes (the default: curation/rules.yaml)"
    )
    parser.add_argument("--splits", type=_shares, metavar="train=.9,test=.1", help="shares of the splits, by video")
    parser.add_argument(
        "--opt-out", type=Path, nargs="+", default=[], metavar="LIST", help="films and uploaders that are not to be used"
    )
    parser.add_argument(
        "--availability", type=Path, metavar="FILE", help="a report of verify-sources: do not ask for what is gone"
    )
    parser.add_argument("--contact", metavar="WHERE", help="mail or page for rights holders, for the card")
    parser.add_argument("--settings", action="store_true", help="print every setting that --set takes, and end")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="processes here, or a Ray cluster (RAY_ADDRESS)"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep what is staged here, for later builds (else OUT.work, removed)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_workers(parser)


def _shares(text: str) -> dict[str, float]:
    from animeshooter_dataset import SPLITS

    try:
        shares = {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like train=.9,validation=.05,test=.05") from None
    if set(shares) - set(SPLITS) or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise argparse.ArgumentTypeError(f"'{text}': shares of {', '.join(SPLITS)} that sum to 1 are wanted")
    return shares


def _build(options: argparse.Namespace) -> int:
    from animeshooter_dataset import DataError
    from curation.build import build

    config = _settled(options)
    if config is None:
        return 0
    if not options.films:
        raise DataError("no film is named")
    with Bar("build") as bar:
        report = build(options.films, options.out, config, **_making(options), progress=bar.to)
    return _tell(report, options.json)


def _import_release(options: argparse.Namespace) -> int:
    from curation.import_release import import_release

    config = _settled(options)
    if config is None:
        return 0
    which = {name: getattr(options, name) for name in ("videos", "download")}
    with Bar("import-release") as bar:
        report = import_release(
            options.release, options.out, config, audio=options.audio_zip, **which, **_making(options), progress=bar.to
        )
    return _tell(report, options.json)


def _settled(options: argparse.Namespace) -> Any:
    """The settings of a build; None where they were only to be printed."""
    from animeshooter_dataset import DataError
    from recipes.config import settings

    if options.workers < 1 or options.short_side < 2:
        raise DataError("--workers must be at least 1 and --short-side at least 2")
    config = _build_config(options)
    if options.settings:
        for name, value in settings(config).items():
            print(f"{name}={value}")
        return None
    return config


def _making(options: argparse.Namespace) -> dict[str, Any]:
    from curation.rules import load_rules

    same = ("workers", "engine", "work", "downloads", "retry_failed", "opt_out", "availability")
    return {"rules": load_rules(options.rules), **{name: getattr(options, name) for name in same}}


def _tell(report: Any, as_json: bool) -> int:
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str))
        return 0
    for line in report.first_dropped:
        print(f"dropped at {line}")
    more = sum(report.dropped.values()) - len(report.first_dropped)
    if more > 0:
        print(f"and {more} more, see {report.out / 'dropped.jsonl'}")
    if report.unsettled:
        print(f"{report.unsettled} films wait for an annotator; the same command goes on with them")
    kept = f"{report.films} films, {report.stories} stories, {report.shots} shots, {report.audio} audio clips"
    print(f"{report.out}: {kept}; {report.rejected} shots not for training")
    return 0


def _build_config(options: argparse.Namespace) -> Any:
    """The settings of a build: those that have an option of their own, then what ``--set`` says."""
    from curation.config import BuildConfig
    from recipes.config import override

    changes = list(options.settings_changed)
    if "short_side" in options:
        changes.insert(0, f"clips.short_side={options.short_side}")
    if "budget_tokens" in options and options.budget_tokens is not None:
        changes.insert(0, f"limits.budget_tokens={options.budget_tokens}")
    asked = {name: getattr(options, name) for name in ("annotator", "judge", "language", "contact") if name in options}
    return override(BuildConfig(**asked, shares=options.splits if "splits" in options else None), changes)


def _collect(options: argparse.Namespace) -> int:
    from animeshooter_dataset import DataError
    from curation.collect import expand

    if not options.films:
        raise DataError("no film is named")
    config = _build_config(options).download
    downloads = options.downloads or Path("animeshooter.films")
    with Bar("collect") as bar:
        paths, dropped = expand(options.films, downloads, config, retry_failed=options.retry_failed, progress=bar.to)
    if options.json:
        print(json.dumps({"films": [str(path) for path in paths], "failed": [loss.public() for loss in dropped]}))
        return 0
    for loss in dropped:
        print(f"failed: {loss.reason}")
    print(f"{len(paths)} films; {len(dropped)} not to be had")
    return 0


def _filter(options: argparse.Namespace) -> int:
    from curation.filter import filter_dataset, preview
    from curation.rules import load_rules

    rules = load_rules(options.rules)
    if options.out is None:
        report = preview(options.directory, rules)
    else:
        with Bar("filter") as bar:
            report = filter_dataset(options.directory, rules, options.out, progress=bar.note)
    print(json.dumps(report.as_dict()) if options.json else report.text())
    return 0


def _cuts(options: argparse.Namespace) -> int:
    from curation.cuts import cuts_json, detect_cuts

    found = cuts_json(detect_cuts(options.film))
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{found['film']}: {found['n_frames']} frames at {found['fps']:g} fps")
    for start in found["cuts"]:
        print(f"{start:>8}  {start / found['fps']:>9.2f} s  cut")
    for start, end in found["gradual"]:
        print(f"{start:>8}  {start / found['fps']:>9.2f} s  gradual, to frame {end}")
    return 0


def _lint(options: argparse.Namespace) -> int:
    from curation.lint import lint

    with Bar("lint") as bar:
        report = lint(options.directory, decode=not options.no_decode, progress=bar.note)
    if options.json:
        print(json.dumps({"problems": report.problems, "samples": report.samples, "frames": report.frames}))
    else:
        for problem in report.problems:
            print(problem)
        looked = ", ".join(f"{number} {config}" for config, number in report.samples.items())
        verdict = f"{len(report.problems)} problems" if report.problems else "clean"
        print(f"{options.directory}: {verdict} ({looked}; {report.frames} frames decoded)")
    return 1 if report.problems else 0


def _card(options: argparse.Namespace) -> int:
    from curation.edition import renew_card

    changed = renew_card(options.directory, options.contact)
    print(f"{options.directory / 'README.md'}: {'written anew' if changed else 'says already what it should'}")
    return 0


def _stats(options: argparse.Namespace) -> int:
    from curation.stats import stats, stats_text

    found = stats(options.directory)
    print(json.dumps(found) if options.json else stats_text(found))
    return 0


def _report(options: argparse.Namespace) -> int:
    from curation.report import write_report

    with Bar("report") as bar:
        page = write_report(options.directory, options.out, progress=bar.note)
    print(page)
    return 0
