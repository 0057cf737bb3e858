"""The command line: ``animeshooter VERB``.

Errors a user can cause are one line on standard error and exit code 2; exit code 0 means that the work was done.
"""

from __future__ import annotations

import argparse
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
    build.add_argument("films", nargs="+", type=Path, metavar="FILM", help="film files, or folders of films")
    build.add_argument("--out", type=Path, default=Path("animeshooter"), help="the dataset directory (%(default)s)")
    build.add_argument(
        "--annotator",
        default="auto",
        help="captions: sidecar reads FILM.script.json, measure says only what was measured, auto takes the first that can, "
        "openai:URL#MODEL asks an OpenAI-compatible endpoint (key in ANIMESHOOTER_API_KEY or OPENAI_API_KEY)",
    )
    build.add_argument("--language", default="English", help="of the captions an endpoint writes (%(default)s)")
    build.add_argument("--budget-tokens", type=int, metavar="N", help="ask an endpoint no more after N tokens in all")
    build.add_argument("--short-side", type=int, default=480, help="pixels of a clip's shorter side (%(default)s)")
    build.add_argument("--splits", type=_shares, metavar="train=.9,test=.1", help="shares of the splits, by video")
    build.add_argument("--json", action="store_true", help="print the report as JSON")
    _add_workers(build)

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
    from curation.annotators import LOCAL, endpoint_of
    from curation.build import build
    from curation.clips import ClipConfig
    from curation.config import BuildConfig

    if options.workers < 1 or options.short_side < 2:
        raise DataError("--workers must be at least 1 and --short-side at least 2")
    config = BuildConfig(
        annotator=options.annotator,
        language=options.language,
        budget_tokens=options.budget_tokens,
        clips=ClipConfig(short_side=options.short_side),
        shares=options.splits,
    )
    if options.annotator not in LOCAL:
        endpoint_of(config)  # a wrong address is said before anything is decoded
    with _Bar("build") as bar:
        report = build(options.films, options.out, config, workers=options.workers, progress=bar.to)
    if options.json:
        counts = {name: getattr(report, name) for name in ("films", "stories", "shots", "audio")}
        dropped = [{"film": str(loss.path), "stage": loss.stage, "reason": loss.reason} for loss in report.dropped]
        print(json.dumps({"out": str(report.out), **counts, "dropped": dropped}))
        return 0
    for loss in report.dropped:
        print(f"dropped at {loss.stage}: {loss.reason}")
    print(f"{report.out}: {report.films} films, {report.stories} stories, {report.shots} shots, {report.audio} audio clips")
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
