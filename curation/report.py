"""``animeshooter report DIR``: one self-contained page that shows a dataset to someone who wants to know whether to trust it.

Every record of a story and every row of the index is looked at, in one pass; what the page shows of them is capped, evenly
chosen or the worst, and says so. Pictures and sound are read of what is shown alone, and memory does not grow with the dataset.
"""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from animeshooter_dataset import (
    DataError,
    RightsRecord,
    Storyboard,
    StoryRecord,
    parse,
    read_lines,
    read_manifest,
    read_samples,
    shards,
    splits,
)
from curation.charts import histogram
from curation.rules import Rule
from curation.stats import Films, Step, facts, funnel, rules_of, summarise, whole_of
from curation.tally import MEASURES, SCORES, Seen, Tally, gather

TEMPLATE = Path(__file__).with_name("report.html")
STORIES_SHOWN, CLIPS_SHOWN, WORST_SHOWN, ALIKE_SHOWN, LINES_SHOWN, JOINT_SHOWN = 60, 24, 60, 10, 200, 24
"""Most stories, audio clips, suspicious shots, such shots with the same reasons, lines of a list, and combinations of rules
that the page shows."""
BOARD_BYTES = 250_000
"""A storyboard of more bytes is stored smaller: with all the caps, the page stays under about 30 MB."""
SHEET_SIDE, SHEET_QUALITY = 600, 80
CLIP_SECONDS, CLIP_RATE, CLIP_BITRATE = 20.0, 24_000, 40_000

SHORT_SECONDS, LONG_SECONDS, FAR_SECONDS, FEW_WORDS = 0.5, 20.0, 1.0, 4
BLACK_SHARE, FLAT_CONTRAST, WEAK_CUT, FAST_MOTION, CLIPPED = 0.5, 3.0, 0.6, 1.5, 0.001
"""Scores beyond which a shot is suspicious; see :data:`SUSPICIONS`. Of the cuts of real films, one in thirty is weaker."""

SUSPICIONS: dict[str, tuple[int, str]] = {
    "no caption": (6, "the narrative or the descriptive caption is empty"),
    "black": (4, f"more than {BLACK_SHARE:.0%} of its frames are black"),
    "rejected": (3, "it fails a rule, so that training leaves it out"),
    "weak cut": (3, f"the cut at its start has a confidence under {WEAK_CUT:g}: perhaps no cut at all"),
    "possible cut": (3, "a detector or the annotator saw a cut inside it that was not believed"),
    "far from annotation": (3, f"the annotator's time is more than {FAR_SECONDS:g} s away from the detected cut"),
    "no sound": (3, "no sound, in a story that has sound in other shots"),
    "one colour": (3, f"nearly one colour: contrast under {FLAT_CONTRAST:g} of 255"),
    "very short": (2, f"shorter than {SHORT_SECONDS:g} s"),
    "very long": (2, f"longer than {LONG_SECONDS:g} s: perhaps a missed cut"),
    "repeated caption": (2, "a caption of another shot of its story, word for word"),
    "very fast": (1, f"motion of more than {FAST_MOTION:g} picture diagonals a second"),
    "clipped sound": (1, f"more than {CLIPPED:.1%} of its samples are clipped"),
    "few words": (1, f"a caption of fewer than {FEW_WORDS} words"),
    "no reference": (1, "a character in it has no reference image from another shot"),
}
"""What makes a shot suspicious, with its weight; a shot's suspicion is the sum. A suspicion is no error: look, then decide."""


@dataclass
class Suspect:
    """A suspicious shot: its weight, its reasons as (name, detail), where it lies, and its storyboard tile as JPEG."""

    weight: int
    shot: Mapping[str, Any]
    reasons: list[tuple[str, str]]
    tar: Path
    story: str
    tile: bytes = b""


class Evenly:
    """At most ``most`` of what is seen, at even distances from the first on; holds twice as many at a time."""

    def __init__(self, most: int) -> None:
        self.most, self.step, self.seen = most, 1, 0
        self.kept: list[Any] = []

    def add(self, item: Any) -> None:
        """See one more."""
        if self.seen % self.step == 0:
            self.kept.append(item)
            if len(self.kept) > 2 * self.most:
                self.kept, self.step = self.kept[::2], 2 * self.step
        self.seen += 1

    def chosen(self) -> list[Any]:
        """What is chosen of all that was seen."""
        number = len(self.kept)
        return self.kept if number <= self.most else [self.kept[place * number // self.most] for place in range(self.most)]


@dataclass
class _Watch:
    """What the one pass keeps for the page."""

    rules: Mapping[str, Rule]
    stories: Evenly = field(default_factory=lambda: Evenly(STORIES_SHOWN))
    clips: Evenly = field(default_factory=lambda: Evenly(CLIPS_SHOWN))
    worst: list[Suspect] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    suspicious: int = 0

    def see(self, seen: Seen) -> None:
        """Look at a story."""
        self.stories.add((seen.tar, seen.story["key"], {row["key"]: row["rejected_by"] or [] for row in seen.rows}))
        for suspect in _suspects(seen, self.rules):
            self.counts.update({name for name, _ in suspect.reasons})
            self.worst.append(suspect)
            self.suspicious += 1
        if len(self.worst) > 20 * WORST_SHOWN:
            self.worst = _worst(self.worst)


def write_report(directory: Path, out: Path | None = None, *, progress: Callable[[str], None] = lambda name: None) -> Path:
    """Write the page and return its path.

    Args:
        directory: the dataset.
        out: the page; by default ``NAME-report.html`` beside the dataset, never in it.
        progress: called with the name of each shard before it is read.

    Raises:
        DataError: it is no dataset directory, a part of it is damaged, or the page cannot be written there.
    """
    read_manifest(directory)
    home = directory.resolve()
    out = out or home.with_name(f"{home.name}-report.html")
    if out.resolve().is_relative_to(home):
        raise DataError(f"{out}: lies inside the dataset, which holds its own files only; name an --out outside {directory}")
    films, rules = Films.of(directory), rules_of(directory)
    watch = _Watch({rule.name: rule for rule in rules})
    tallies = gather(directory, watch.see, watch.clips.add, progress)
    found, whole = summarise(directory, tallies, films), whole_of(tallies)
    rejected = whole.rules.report(rules)
    suspects = _worst(watch.worst)
    _add_tiles(suspects)
    text = _render(
        found=found,
        numbers=_header(found),
        funnel=_bars(funnel(found, rejected)),
        rejected=rejected,
        joint=[(names, number) for names, number in rejected.together if len(names) > 1][:JOINT_SHOWN],
        films=films,
        facts=facts(found),
        histograms=_histograms(found, whole),
        scores=_score_histograms(found, whole, rules),
        suspects=suspects,
        suspicious=watch.suspicious,
        counts={name: watch.counts[name] for name in SUSPICIONS if watch.counts[name]},
        stories=list(_stories(watch.stories.chosen())),
        stories_of=(min(STORIES_SHOWN, watch.stories.seen), watch.stories.seen),
        clips=list(_clips(directory, watch.clips.chosen())),
        clips_of=(min(CLIPS_SHOWN, watch.clips.seen), watch.clips.seen),
        rights=list(islice(read_lines(directory / "rights.jsonl", RightsRecord), LINES_SHOWN)),
        rights_of=sum(found["rights"].values()),
    )
    try:
        draft = out.with_name(f".{out.name}.part")
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); name another --out") from None
    return out


def _render(**values: Any) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data"] = lambda blob, kind: f"data:{kind};base64,{base64.b64encode(blob).decode()}"
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **values, meanings=SUSPICIONS, most=LINES_SHOWN, alike=ALIKE_SHOWN, clip_seconds=CLIP_SECONDS
    )


def _worst(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The most suspicious, varied: a hundred black shots must not hide a shot that is suspicious for another reason."""
    kinds: Counter[frozenset[str]] = Counter()
    kept = []
    for suspect in sorted(suspects, key=lambda suspect: (-suspect.weight, suspect.shot["key"])):
        kind = frozenset(name for name, _ in suspect.reasons)
        kinds[kind] += 1
        if kinds[kind] <= ALIKE_SHOWN:
            kept.append(suspect)
    return kept[:WORST_SHOWN]


def _add_tiles(suspects: Sequence[Suspect]) -> None:
    """Cut the tiles of suspicious shots from their storyboards."""
    for tar in sorted({suspect.tar for suspect in suspects}):
        here = [suspect for suspect in suspects if suspect.tar == tar]
        for key, members in read_samples(tar, ("json", "jpg"), {suspect.story for suspect in here}):
            story = _story(members["json"], f"{tar}: {key}")
            board = _board(members["jpg"], story, f"{tar}: {key}")
            for suspect in here:
                if suspect.story == key:
                    suspect.tile = _encoded(tile(board, story, suspect.shot["position"]), "JPEG", quality=80)


def _story(blob: bytes, where: str) -> StoryRecord:
    record = parse("stories", blob, where)
    assert isinstance(record, StoryRecord)
    return record


def _picture(blob: bytes, where: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(blob))
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: a picture that cannot be read ({error}); build or download it again") from None
    return picture


def _board(blob: bytes, story: StoryRecord, where: str) -> Image.Image:
    board, layout = _picture(blob, where).convert("RGB"), story.storyboard
    size = (layout.columns * layout.tile_width, _rows(story) * layout.tile_height)
    if board.size != size:
        raise DataError(f"{where}: its storyboard is {board.size}, by its record {size}; build it again")
    return board


def _rows(story: StoryRecord) -> int:
    return -(-len(story.shots) // story.storyboard.columns)


def tile(board: Image.Image, story: StoryRecord, place: int) -> Image.Image:
    """The picture of one shot on a storyboard."""
    layout: Storyboard = story.storyboard
    row, column = divmod(place, layout.columns)
    x, y = column * layout.tile_width, row * layout.tile_height
    return board.crop((x, y, x + layout.tile_width, y + layout.tile_height))


def _suspects(seen: Seen, rules: Mapping[str, Rule]) -> Iterator[Suspect]:
    shown: dict[str, set[str]] = {}
    for reference in seen.story["references"]:
        shown.setdefault(reference["character"], set()).add(reference["shot"])
    sounding = any(row["has_audio"] for row in seen.rows)
    said: dict[str, int] = {}
    for shot, row in zip(seen.story["shots"], seen.rows):
        reasons = [*_time_reasons(shot), *_caption_reasons(shot, said), *_score_reasons(row, rules)]
        if sounding and not row["has_audio"]:
            reasons.append(("no sound", "the story's other shots have sound"))
        lacking = [name for name in shot["characters"] if not shown.get(name, set()) - {shot["key"]}]
        if lacking:
            reasons.append(("no reference", ", ".join(lacking)))
        if reasons:
            weight = sum(SUSPICIONS[name][0] for name in dict(reasons))
            yield Suspect(weight, shot, reasons, seen.tar, seen.story["key"])


def _time_reasons(shot: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    seconds = shot["end_time"] - shot["start_time"]
    if seconds < SHORT_SECONDS:
        yield "very short", f"{seconds:.2f} s"
    if seconds > LONG_SECONDS:
        yield "very long", f"{seconds:.1f} s"
    for edge in ("start", "end"):
        annotated, detected = shot[f"annotated_{edge}_time"], shot[f"{edge}_time"]
        if annotated is not None and abs(annotated - detected) > FAR_SECONDS:
            yield "far from annotation", f"{edge} annotated at {annotated:.1f} s, cut at {detected:.1f} s"
    if shot["possible_cuts"]:
        yield "possible cut", "at frame " + ", ".join(map(str, shot["possible_cuts"][:4]))


def _caption_reasons(shot: Mapping[str, Any], said: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Reasons in the captions; ``said`` holds the shot that said each caption of the story first."""
    for kind in ("narrative", "descriptive"):
        words = shot[f"{kind}_caption"].split()
        if not words:
            yield "no caption", kind
            continue
        if len(words) < FEW_WORDS:
            yield "few words", f"{kind}: {len(words)}"
        first = said.setdefault(f"{kind} {' '.join(words).lower()}", shot["position"])
        if first != shot["position"]:
            yield "repeated caption", f"{kind}, as shot {first + 1}"


def _score_reasons(row: Mapping[str, Any], rules: Mapping[str, Rule]) -> Iterator[tuple[str, str]]:
    """Reasons in the scores of a shot, which may be unknown."""
    for name in row["rejected_by"] or ():
        column = rules[name].column if name in rules else None
        value = row.get(column) if column in SCORES else None
        yield "rejected", name if value is None else f"{name} ({value:.3g})"
    limits = (
        ("black", "black_frames", BLACK_SHARE, 1),
        ("one colour", "contrast", FLAT_CONTRAST, -1),
        ("weak cut", "cut_confidence", WEAK_CUT, -1),
        ("very fast", "motion", FAST_MOTION, 1),
        ("clipped sound", "clipping", CLIPPED, 1),
    )
    for name, column, limit, sign in limits:
        if row[column] is not None and sign * row[column] > sign * limit:
            yield name, f"{row[column]:.3g}"


def _encoded(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, kind, **settings)
    return target.getvalue()


def _stories(chosen: Sequence[tuple[Path, str, Mapping[str, Sequence[str]]]]) -> Iterator[dict[str, Any]]:
    """What the page shows of each chosen story."""
    for tar in sorted({tar for tar, _, _ in chosen}, key=[tar for tar, _, _ in chosen].index):
        rejected = {key: names for where, key, names in chosen if where == tar}
        for key, members in read_samples(tar, ("json", "png", "jpg"), rejected):
            where = f"{tar}: {key}"
            story = _story(members["json"], where)
            yield {
                "record": story,
                "board": _fitted(members["jpg"], _board(members["jpg"], story, where)),
                "rows": _rows(story),
                "sheet": _sheet(_picture(members["png"], where)) if story.references else None,
                "shown": {image.character for image in story.references},
                "rejected": rejected[key],
            }


def _fitted(blob: bytes, board: Image.Image) -> bytes:
    """The storyboard as it is stored, or made smaller until it is small enough."""
    for share in (0.75, 0.5, 0.35, 0.25, 0.12):
        if len(blob) <= BOARD_BYTES:
            break
        size = (max(1, round(board.width * share)), max(1, round(board.height * share)))
        blob = _encoded(board.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=80)
    return blob


def _sheet(sheet: Image.Image) -> bytes:
    sheet = sheet.convert("RGBA")
    sheet.thumbnail((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS)
    return _encoded(sheet, "WEBP", quality=SHEET_QUALITY)


def _clips(directory: Path, chosen: Sequence[str]) -> Iterator[dict[str, Any]]:
    keys = frozenset(chosen)
    for split in splits(directory, "audio") if keys else []:
        for tar in shards(directory, "audio", split):
            for key, members in read_samples(tar, ("flac", "json"), keys):
                record = parse("audio", members["json"], f"{tar}: {key}")
                yield {"record": record, "sound": small_sound(members["flac"], f"{tar}: {key}")}


def small_sound(flac: bytes, where: str) -> bytes:
    """The first :data:`CLIP_SECONDS` of a FLAC as a small MP3, mono, which every browser plays.

    Raises:
        DataError: it cannot be decoded.
    """
    import av

    target = io.BytesIO()
    try:
        with av.open(io.BytesIO(flac), format="flac") as source, av.open(target, "w", format="mp3") as sink:
            stream = sink.add_stream("libmp3lame", rate=CLIP_RATE, layout="mono")
            stream.codec_context.bit_rate = CLIP_BITRATE
            resampler = av.AudioResampler(format="s16p", layout="mono", rate=CLIP_RATE)
            heard = False
            for frame in source.decode(audio=0):
                heard = True
                if frame.time is not None and frame.time >= CLIP_SECONDS:
                    break
                for part in resampler.resample(frame):
                    sink.mux(stream.encode(part))
            if not heard:
                raise ValueError("it holds no sound")
            for part in resampler.resample(None):
                sink.mux(stream.encode(part))
            sink.mux(stream.encode(None))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"{where}: sound that cannot be decoded ({error}); build or download it again") from None
    return target.getvalue()


def _header(found: dict[str, Any]) -> list[tuple[str, str]]:
    whole = found["whole"]
    minutes, seconds = divmod(round(whole["hours"] * 3600), 60)
    length = f"{whole['hours']:.1f}" if whole["hours"] >= 2 else f"{minutes}:{seconds:02d}"
    numbers = [
        (whole["videos"], "films"),
        (length, "hours" if whole["hours"] >= 2 else "minutes"),
        (whole["stories"], "stories"),
        (whole["shots"], "shots"),
        (found["funnel"][-1]["number"], "shots for training"),
        (whole["references"]["shots_with_reference"], "shots with a reference from another shot"),
        (whole["audio_clips"], "audio clips"),
    ]
    return [(f"{value:,}" if isinstance(value, int) else value, label) for value, label in numbers if value]


def _bars(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The funnel with the length of each bar, as a share of the longest of its unit."""
    longest = {unit: max(step.number for step in steps if step.unit == unit) for unit in {step.unit for step in steps}}
    return [{"step": step, "share": 100 * step.number / max(1, longest[step.unit])} for step in steps]


def _histograms(found: dict[str, Any], whole: Tally) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "paper": paper,
            "numbers": found["whole"]["distributions"][name],
            "svg": histogram(whole.values[name], label, paper=paper),
        }
        for name, (label, paper, _) in MEASURES.items()
        if name in found["whole"]["distributions"]
    ]


def _score_histograms(found: dict[str, Any], whole: Tally, rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """A histogram of each score that is known of some shots, with the limits that rules set it."""
    charts = []
    for name, (label, _) in SCORES.items():
        if name in found["whole"]["scores"]:
            about = [rule for rule in rules if rule.column == name]
            limits = [limit for rule in about for limit in (rule.least, rule.most) if limit is not None]
            charts.append(
                {
                    "label": label,
                    "numbers": found["whole"]["scores"][name],
                    "unknown": found["whole"]["shots"] - whole.values[name].number,
                    "rules": [f"{rule.name}: {rule.says().removeprefix(f'{name} ')}" for rule in about],
                    "svg": histogram(whole.values[name], label, limits=limits),
                }
            )
    return charts
