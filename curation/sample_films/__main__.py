"""`python -m curation.sample_films --out DIR`: render the sample films."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .render import FILMS, render_films


def main() -> int:
    """Render the films named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m curation.sample_films", description="Render the sample films.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the films")
    parser.add_argument("--films", nargs="+", default=list(FILMS), choices=FILMS, metavar="NAME", help=", ".join(FILMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="films rendered at the same time")
    args = parser.parse_args()
    from tqdm import tqdm

    with tqdm(unit="frame" if args.workers <= 1 else "film", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        for path in render_films(args.out, seed=args.seed, workers=args.workers, names=args.films, progress=show):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
