"""Where the time of a build goes, film by film, beside what it cannot be done without: detector, one decode, and encoder.

Stages run one after another in this process, as a worker runs them, and no model is asked. The floor of a film is the sum
of three things measured in the same run: TransNetV2 over every window of the film, one plain decode, and the encoding of its
clips (that stage less one decode). A peer does its part of the work in the same run. The figures of every film stand in
the JSON, none averaged away.

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
from curation.curate import STAGES, curate
from curation.network import SIZE, Network, load_model
from curation.video import RgbScaler, decode


def main() -> None:
    """Measure the films named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    warm_up(options.films[0])
    measured = {film.name: measure(read_film(film)) for film in options.films}
    print(table(measured))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        options.json.write_text(json.dumps({"machine": machine, "seconds": measured}, indent=1) + "\n")


def warm_up(path: Path) -> None:
    """Load every model once, so that the first film does not pay for it: a worker loads them once for all its films."""
    from curation.text import find_text

    first = next(iter(decode(path)))[2]
    find_text(RgbScaler((640, 360))(first))
    load_model()


def measure(film: Film) -> dict[str, float]:
    """Wall seconds of what cannot be avoided, of each stage, and of a peer, for one film; ``film`` is its own length."""
    seconds = {"film": film.info.duration, "decode": timed(lambda: sum(1 for _ in decode(film.path)))}
    seconds["detector"] = detector(film.path)
    seconds["PySceneDetect"] = timed(lambda: scenedetect(film.path))
    with tempfile.TemporaryDirectory() as work:
        began = [time.perf_counter()]

        def stage(name: str) -> None:
            began.append(time.perf_counter())
            seconds[name] = began[-1] - began[-2]

        curate(film, BuildConfig(), Path(work), stage)
        seconds["all stages"] = time.perf_counter() - began[0]
    encode = max(0.0, seconds["clips"] - seconds["decode"])
    seconds["floor"] = seconds["detector"] + seconds["decode"] + encode
    return {name: round(value, 3) for name, value in seconds.items()}


def detector(path: Path) -> float:
    """Wall seconds of TransNetV2 over every window of a film, without the decoding."""
    shrink = RgbScaler(SIZE)
    pictures = [shrink(frame) for _, _, frame in decode(path)]

    def run() -> None:
        model = load_model()
        assert model is not None, "TransNetV2 cannot be loaded"
        network = Network(model)
        for picture in pictures:
            network.push(picture)
        network.finish()

    return timed(run)


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
    """The figures as text: seconds, film-seconds a second of each stage and of the whole, and the ratio to the floor."""
    names = list(next(iter(measured.values())))
    lines = [f"{'seconds':<32}" + "".join(f"{name:>15}" for name in names) + f"{'stages/floor':>15}{'stages/decode':>15}"]
    for film, values in measured.items():
        ratios = f"{values['all stages'] / values['floor']:>15.2f}{values['all stages'] / values['decode']:>15.1f}"
        lines.append(f"{film[:31]:<32}" + "".join(f"{values[name]:>15.2f}" for name in names) + ratios)
    timings = ["decode", *STAGES, "all stages"]
    lines += ["", f"{'film-seconds a second':<32}" + "".join(f"{name:>15}" for name in timings)]
    for film, values in measured.items():
        lines.append(f"{film[:31]:<32}" + "".join(f"{values['film'] / values[name]:>15.1f}" for name in timings))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
