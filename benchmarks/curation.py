"""Where the time of a build goes, film by film, beside the time of one plain decode of the same film.

Stages run one after another in this process, as a worker runs them; a peer does its part of the work in the same run. The
figures of every film stand in the JSON, none averaged away.

Run: python -m benchmarks.curation FILM... [--json benchmarks/results/curation.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from curation.collect import Film, read_film
from curation.config import BuildConfig
from curation.curate import curate
from curation.video import decode


def main() -> None:
    """Measure the films named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    measured = {film.name: measure(read_film(film)) for film in options.films}
    print(table(measured))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        options.json.write_text(json.dumps({"machine": machine, "seconds": measured}, indent=1) + "\n")


def measure(film: Film) -> dict[str, float]:
    """Wall seconds of a plain decode, of each stage, and of peers, for one film; ``film`` is its own length."""
    seconds = {"film": film.info.duration, "decode": timed(lambda: sum(1 for _ in decode(film.path)))}
    seconds["PySceneDetect"] = timed(lambda: scenedetect(film.path))
    with tempfile.TemporaryDirectory() as work:
        began = [time.perf_counter()]

        def stage(name: str) -> None:
            began.append(time.perf_counter())
            seconds[name] = began[-1] - began[-2]

        curate(film, BuildConfig(), Path(work), stage)
        seconds["all stages"] = began[-1] - began[0]
    return {name: round(value, 3) for name, value in seconds.items()}


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def scenedetect(path: Path) -> object:
    """PySceneDetect's adaptive detector as its users call it: decode and boundaries, nothing else."""
    from scenedetect import AdaptiveDetector, detect

    return detect(str(path), AdaptiveDetector())


def table(measured: dict[str, dict[str, float]]) -> str:
    """The figures as text: seconds, and what of them a plain decode would be."""
    names = list(next(iter(measured.values())))
    lines = [f"{'seconds':<32}" + "".join(f"{name:>15}" for name in names) + f"{'stages/decode':>15}{'film s / s':>12}"]
    for film, values in measured.items():
        ratio, speed = values["all stages"] / values["decode"], values["film"] / values["all stages"]
        lines.append(f"{film[:31]:<32}" + "".join(f"{values[name]:>15.2f}" for name in names) + f"{ratio:>15.1f}{speed:>12.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
