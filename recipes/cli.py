"""The command line: ``animeshooter VERB``.

Errors a user can cause are one line on standard error and exit code 2; exit code 0 means that the work was done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    from animeshooter_dataset import DataError

    try:
        return options.run(options)
    except DataError as error:
        print(f"animeshooter {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"animeshooter {options.verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, `head` say, has seen enough
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="animeshooter", description="From animated films to a model that tells multi-shot stories."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = _verb(verbs, "demo", _demo, "see the whole system work on three sample films, in a few minutes")
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), help="films, checkpoints, the story and index.html (%(default)s)"
    )
    demo.add_argument("--data", type=Path, default=Path("animeshooter"), help="the dataset directory (%(default)s)")
    demo.add_argument("--films", nargs="+", type=Path, help="your own films instead of the sample films")
    demo.add_argument("--small", action="store_true", help="one film and two steps a stage: does it run at all?")
    _add_workers(demo)

    build = _verb(verbs, "build", _build, "films to a dataset directory")
    _add_sources(build)
    build.add_argument("--out", type=Path, default=Path("animeshooter"), help="the dataset directory (%(default)s)")
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
    build.add_argument("--short-side", type=int, default=480, help="pixels of a clip's shorter side (%(default)s)")
    build.add_argument(
        "--rules", type=Path, metavar="FILE", help="which shots training takes (the default: curation/rules.yaml)"
    )
    build.add_argument("--splits", type=_shares, metavar="train=.9,test=.1", help="shares of the splits, by video")
    build.add_argument("--settings", action="store_true", help="print every setting that --set takes, and end")
    build.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="processes here, or a Ray cluster (RAY_ADDRESS)"
    )
    build.add_argument(
        "--work", type=Path, metavar="DIR", help="keep what is staged here, for later builds (else OUT.work, removed)"
    )
    build.add_argument("--json", action="store_true", help="print the report as JSON")
    _add_workers(build)

    collect = _verb(verbs, "collect", _collect, "fetch films from addresses, with rate limits; building is for another day")
    _add_sources(collect)
    collect.add_argument("--json", action="store_true", help="print files and failures as JSON")

    mark = _verb(verbs, "filter", _filter, "what other rules would keep out of training, or a dataset marked by them")
    mark.add_argument("directory", type=Path, metavar="DIR")
    mark.add_argument("--rules", type=Path, metavar="FILE", help="a rule file (the default: curation/rules.yaml)")
    mark.add_argument(
        "--out", type=Path, metavar="NEW", help="write the dataset anew, marked by these rules; media pass as they are"
    )
    mark.add_argument("--json", action="store_true", help="print the report as JSON")

    cuts = _verb(verbs, "cuts", _cuts, "the shot boundaries of a film")
    cuts.add_argument("film", type=Path, metavar="FILM")
    cuts.add_argument("--json", action="store_true", help="print {film, fps, n_frames, cuts, gradual}")

    lint = _verb(verbs, "lint", _lint, "check a dataset directory to the last frame")
    lint.add_argument("directory", type=Path, metavar="DIR")
    lint.add_argument("--no-decode", action="store_true", help="leave clips and pictures undecoded: faster, proves less")
    lint.add_argument("--json", action="store_true", help="print the findings as JSON")

    stats = _verb(verbs, "stats", _stats, "the numbers of a dataset, beside the paper's")
    stats.add_argument("directory", type=Path, metavar="DIR")
    stats.add_argument("--json", action="store_true", help="print the numbers as JSON")

    report = _verb(verbs, "report", _report, "one page that shows a dataset, its worst cases first")
    report.add_argument("directory", type=Path, metavar="DIR")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page (DIR-report.html beside the dataset)")

    generate = _verb(verbs, "generate", _generate, "a story, shot by shot, from a checkpoint")
    generate.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's folder, or its name on the Hub")
    generate.add_argument("--reference", type=Path, metavar="IMAGE", help="picture of the character; none: a blank one")
    generate.add_argument("--script", type=Path, required=True, metavar="STORY.json", help='{"captions": ["...", "..."]}')
    generate.add_argument("--out", type=Path, required=True, metavar="DIR")
    generate.add_argument("--steps", type=int, default=50, help="denoising steps a shot (%(default)s)")
    generate.add_argument("--guidance", type=float, default=6.0, help="classifier-free guidance, 1 is none (%(default)s)")
    generate.add_argument("--fps", type=float, help="frames a second (as the checkpoint was trained)")
    generate.add_argument("--seed", type=int, default=0)
    return parser


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "films",
        nargs="*",
        metavar="FILM",
        help="films, folders, 'patterns*', lists (@FILE or FILE.txt, a line a film), https:// addresses, yt:VIDEOID",
    )
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


def _add_workers(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help="processes; changes nothing in the result (%(default)s)")


def _shares(text: str) -> dict[str, float]:
    from animeshooter_dataset import SPLITS

    try:
        shares = {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like train=.9,validation=.05,test=.05") from None
    if set(shares) - set(SPLITS) or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise argparse.ArgumentTypeError(f"'{text}': shares of {', '.join(SPLITS)} that sum to 1 are wanted")
    return shares


def _demo(options: argparse.Namespace) -> int:
    from recipes.demo import run_demo

    run_demo(options.out, options.data, films=options.films, small=options.small, workers=options.workers)
    return 0


def _build(options: argparse.Namespace) -> int:
    from animeshooter_dataset import DataError
    from curation.build import build
    from curation.rules import load_rules
    from recipes.config import settings

    if options.workers < 1 or options.short_side < 2:
        raise DataError("--workers must be at least 1 and --short-side at least 2")
    config = _build_config(options)
    if options.settings:
        for name, value in settings(config).items():
            print(f"{name}={value}")
        return 0
    if not options.films:
        raise DataError("no film is named")
    run = {name: getattr(options, name) for name in ("workers", "engine", "work", "downloads", "retry_failed")}
    with _Bar("build") as bar:
        report = build(options.films, options.out, config, rules=load_rules(options.rules), **run, progress=bar.to)
    if options.json:
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
    asked = {name: getattr(options, name) for name in ("annotator", "judge", "language") if name in options}
    return override(BuildConfig(**asked, shares=options.splits if "splits" in options else None), changes)


def _collect(options: argparse.Namespace) -> int:
    from animeshooter_dataset import DataError
    from curation.collect import expand

    if not options.films:
        raise DataError("no film is named")
    config = _build_config(options).download
    downloads = options.downloads or Path("animeshooter.films")
    with _Bar("collect") as bar:
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
        with _Bar("filter") as bar:
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

    with _Bar("lint") as bar:
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


def _stats(options: argparse.Namespace) -> int:
    from curation.stats import stats, stats_text

    found = stats(options.directory)
    print(json.dumps(found) if options.json else stats_text(found))
    return 0


def _report(options: argparse.Namespace) -> int:
    from curation.report import write_report

    with _Bar("report") as bar:
        page = write_report(options.directory, options.out, progress=bar.note)
    print(page)
    return 0


def _generate(options: argparse.Namespace) -> int:
    from recipes.generate import generate

    settings = {name: getattr(options, name) for name in ("reference", "script", "out", "seed", "steps", "guidance", "fps")}
    story = generate(options.checkpoint, **settings, on_shot=lambda number, path: print(f"shot {number}: {path}", flush=True))
    print(f"story: {story}")
    return 0


class _Bar:
    """A progress bar on standard error, there only where somebody watches."""

    def __init__(self, label: str) -> None:
        from tqdm import tqdm

        self.bar = tqdm(desc=label, file=sys.stderr, disable=None, leave=False)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def to(self, done: int, total: int, label: str) -> None:
        """Show ``done`` of ``total`` steps."""
        self.bar.total, self.bar.n = total, done
        self.bar.set_postfix_str(label)

    def note(self, label: str) -> None:
        """Show what is being looked at; how much there is, is not known."""
        self.bar.update()
        self.bar.set_postfix_str(label)


if __name__ == "__main__":
    sys.exit(main())
