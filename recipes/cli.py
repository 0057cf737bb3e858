"""The command line: ``animeshooter VERB``.

Errors a user can cause are one line on standard error and exit code 2; exit code 0 means that the work was done.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.command import add_verb, add_workers
from recipes.verbs_dataset import add_dataset_verbs
from recipes.verbs_rights import add_rights_verbs
from recipes.verbs_train import add_train_verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        from animeshooter_dataset import DataError
    except ImportError as error:  # a broken installation is what `doctor` is for
        if options.verb == "doctor":
            return options.run(options)
        print(f"animeshooter {options.verb}: {error}; `animeshooter doctor` says what else is missing", file=sys.stderr)
        return 2
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

    demo = add_verb(verbs, "demo", _demo, "see the whole system work on three sample films, in a few minutes")
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), help="films, checkpoints, the story and index.html (%(default)s)"
    )
    demo.add_argument("--data", type=Path, default=Path("animeshooter"), help="the dataset directory (%(default)s)")
    demo.add_argument("--films", nargs="+", type=Path, help="your own films instead of the sample films")
    demo.add_argument("--small", action="store_true", help="one film and two steps a stage: does it run at all?")
    add_workers(demo)

    add_dataset_verbs(verbs)
    add_rights_verbs(verbs)
    add_train_verbs(verbs)

    generate = add_verb(verbs, "generate", _generate, "a story, shot by shot, from a checkpoint")
    generate.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's folder, or its name on the Hub")
    generate.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="[NAME=]IMAGE",
        help="picture of the character, or of several, each with its name; none: a blank one",
    )
    generate.add_argument("--script", type=Path, required=True, metavar="STORY.json", help='{"captions": ["...", "..."]}')
    generate.add_argument("--out", type=Path, required=True, metavar="DIR")
    generate.add_argument("--steps", type=int, default=50, help="denoising steps a shot (%(default)s)")
    generate.add_argument("--guidance", type=float, default=6.0, help="classifier-free guidance, 1 is none (%(default)s)")
    generate.add_argument(
        "--reference-guidance", type=float, metavar="SCALE", help="guidance by the references; --guidance is then the captions'"
    )
    generate.add_argument("--fps", type=float, help="frames a second (as the checkpoint was trained)")
    generate.add_argument("--seed", type=int, default=0)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from recipes.demo import run_demo

    run_demo(options.out, options.data, films=options.films, small=options.small, workers=options.workers)
    return 0


def _generate(options: argparse.Namespace) -> int:
    from recipes.generate import generate, named_references

    names = ("script", "out", "seed", "steps", "guidance", "reference_guidance", "fps")
    story = generate(
        options.checkpoint,
        named_references(options.reference),
        **{name: getattr(options, name) for name in names},
        on_shot=lambda number, path: print(f"shot {number}: {path}", flush=True),
    )
    print(f"story: {story}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
