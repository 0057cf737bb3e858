"""``animeshooter report DIR``: one self-contained page that shows a dataset to someone who wants to know whether to trust it.

Every record and every storyboard is looked at; what the page shows of them is capped, evenly chosen, and says so. Memory holds
one sample at a time besides what is shown.
"""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from animeshooter_dataset import (
    AudioRecord,
    DataError,
    Record,
    ShotAnnotation,
    ShotRecord,
    Storyboard,
    StoryRecord,
    parse,
    read_manifest,
    read_rights,
    read_samples,
    shards,
    splits,
)
from curation.stats import MEASURES, Tally, facts, gather, summarise, whole_of

TEMPLATE = Path(__file__).with_name("report.html")
STORIES_SHOWN, CLIPS_SHOWN, WORST_SHOWN, ALIKE_SHOWN, LINES_SHOWN = 60, 24, 60, 10, 200
"""Most stories, audio clips, suspicious shots, such shots with the same reasons, and lines of a list that the page shows."""
BOARD_BYTES = 250_000
"""A storyboard of more bytes is stored smaller: with all the caps, the page stays under about 30 MB."""
SHEET_SIDE, SHEET_QUALITY = 600, 80
CLIP_SECONDS, CLIP_RATE, CLIP_BITRATE = 20.0, 24_000, 40_000

SHORT_SECONDS, LONG_SECONDS, FAR_SECONDS, FEW_WORDS = 0.5, 20.0, 1.0, 4
BLACK_LEVEL, FLAT_DEVIATION, SAME_DIFFERENCE = 16.0, 3.0, 4.0
"""Of 255, on a grey storyboard tile: 99th percentile of black, standard deviation of one colour, mean distance of two
tiles that show the same. Across the hard cuts of real and rendered films the distance was 9 and more."""

SUSPICIONS: dict[str, tuple[int, str]] = {
    "no caption": (6, "the narrative or the descriptive caption is empty"),
    "black": (4, f"all black: 99 of 100 pixels of its storyboard tile are darker than {BLACK_LEVEL:g} of 255"),
    "same picture": (
        4,
        f"its tile differs from the tile before by less than {SAME_DIFFERENCE:g} of 255: perhaps no cut at all",
    ),
    "far from annotation": (3, f"the annotator's time is more than {FAR_SECONDS:g} s away from the detected cut"),
    "no sound": (3, "no sound, in a film that has sound in other shots"),
    "one colour": (3, f"nearly one colour: deviation on its tile under {FLAT_DEVIATION:g} of 255"),
    "very short": (2, f"shorter than {SHORT_SECONDS:g} s"),
    "very long": (2, f"longer than {LONG_SECONDS:g} s: perhaps a missed cut"),
    "repeated caption": (2, "a caption of another shot of its story, word for word"),
    "few words": (1, f"a caption of fewer than {FEW_WORDS} words"),
    "no reference": (1, "a character in it has no reference image from another shot"),
}
"""What makes a shot suspicious, with its weight; a shot's suspicion is the sum. A suspicion is no error: look, then decide."""


@dataclass
class Suspect:
    """A suspicious shot: its weight, its reasons as (name, detail), and its storyboard tile as JPEG."""

    weight: int
    shot: ShotAnnotation
    reasons: list[tuple[str, str]]
    tile: bytes


@dataclass
class _Watch:
    """What of all records is needed later: keys in order, and what only shot records say."""

    stories: list[str] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    sounding: set[str] = field(default_factory=set)
    lacking: dict[str, list[str]] = field(default_factory=dict)

    def see(self, record: Record) -> None:
        if isinstance(record, StoryRecord):
            self.stories.append(record.key)
        elif isinstance(record, AudioRecord):
            self.clips.append(record.key)
        elif isinstance(record, ShotRecord):
            if record.has_audio:
                self.sounding.add(record.video)
            else:
                self.silent.add(record.key)
            if record.characters_without_reference:
                self.lacking[record.key] = record.characters_without_reference


def write_report(directory: Path, out: Path | None = None, *, progress: Callable[[str], None] = lambda name: None) -> Path:
    """Write the page and return its path.

    Args:
        directory: the dataset.
        out: the page; by default ``NAME-report.html`` beside the dataset, never in it.
        progress: called with the name of each shard before its pictures are looked at.

    Raises:
        DataError: it is no dataset directory, a part of it is damaged, or the page cannot be written there.
    """
    read_manifest(directory)
    home = directory.resolve()
    out = out or home.with_name(f"{home.name}-report.html")
    if out.resolve().is_relative_to(home):
        raise DataError(f"{out}: lies inside the dataset, which holds its own files only; name an --out outside {directory}")
    watch = _Watch()
    tallies = gather(directory, watch.see)
    found, whole = summarise(directory, tallies), whole_of(tallies)
    suspects, suspicious, counts = find_suspects(directory, watch, progress)
    chosen = evenly(watch.stories, STORIES_SHOWN)
    text = _render(
        found=found,
        numbers=_header(found),
        funnel=_funnel(found),
        facts=facts(found),
        histograms=_histograms(found, whole),
        suspects=suspects,
        suspicious=suspicious,
        counts=counts,
        stories=list(_stories(directory, chosen)),
        stories_of=(len(chosen), len(watch.stories)),
        clips=list(_clips(directory, evenly(watch.clips, CLIPS_SHOWN))),
        clips_of=(min(CLIPS_SHOWN, len(watch.clips)), len(watch.clips)),
        rights=read_rights(directory),
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


def evenly(keys: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of ``keys``, at even distances from the first on."""
    return list(keys) if len(keys) <= most else [keys[number * len(keys) // most] for number in range(most)]


def find_suspects(
    directory: Path, watch: _Watch, progress: Callable[[str], None] = lambda name: None
) -> tuple[list[Suspect], int, dict[str, int]]:
    """Look at every shot of a dataset.

    Returns:
        The :data:`WORST_SHOWN` most suspicious shots, worst first, at most :data:`ALIKE_SHOWN` of them with the same reasons;
        how many shots are suspicious; and to how many each of :data:`SUSPICIONS` applies.
    """
    worst: list[Suspect] = []
    counts: Counter[str] = Counter()
    number = 0
    for tar in _shards(directory, "stories"):
        progress(f"stories/{tar.name}")
        for key, members in read_samples(tar, ("json", "jpg")):
            story = parse("stories", members["json"], f"stories/{tar.name}: {key}")
            assert isinstance(story, StoryRecord)
            pictures = tiles(_board(members["jpg"], story, f"{tar}: {key}"), story)
            for suspect in _suspects(story, pictures, watch):
                counts.update({name for name, _ in suspect.reasons})
                worst.append(suspect)
                number += 1
            worst = _worst(worst)
    return worst, number, {name: counts[name] for name in SUSPICIONS if counts[name]}


def _worst(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The most suspicious, varied: a hundred black shots must not hide a shot that is suspicious for another reason."""
    kinds: Counter[frozenset[str]] = Counter()
    kept = []
    for suspect in sorted(suspects, key=lambda suspect: (-suspect.weight, suspect.shot.key)):
        kind = frozenset(name for name, _ in suspect.reasons)
        kinds[kind] += 1
        if kinds[kind] <= ALIKE_SHOWN:
            kept.append(suspect)
    return kept[:WORST_SHOWN]


def _shards(directory: Path, config: str) -> Iterator[Path]:
    for split in splits(directory, config):
        yield from shards(directory, config, split)


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


def tiles(board: Image.Image, story: StoryRecord) -> list[Image.Image]:
    """The pictures of a storyboard, one a shot."""
    layout: Storyboard = story.storyboard
    places = [divmod(place, layout.columns) for place in range(len(story.shots))]
    corners = [(column * layout.tile_width, row * layout.tile_height) for row, column in places]
    return [board.crop((x, y, x + layout.tile_width, y + layout.tile_height)) for x, y in corners]


def _suspects(story: StoryRecord, tiles: Sequence[Image.Image], watch: _Watch) -> Iterator[Suspect]:
    greys = [np.asarray(tile.convert("L"), dtype=np.float32) for tile in tiles]
    said: dict[str, int] = {}
    for place, shot in enumerate(story.shots):
        reasons = [*_time_reasons(shot), *_caption_reasons(shot, said)]
        reasons += _picture_reasons(greys[place], greys[place - 1] if place else None)
        if shot.key in watch.silent and story.video in watch.sounding:
            reasons.append(("no sound", "the film's other shots have sound"))
        if shot.key in watch.lacking:
            reasons.append(("no reference", ", ".join(watch.lacking[shot.key])))
        if reasons:
            weight = sum(SUSPICIONS[name][0] for name in dict(reasons))
            yield Suspect(weight, shot, reasons, _encoded(tiles[place], "JPEG", quality=80))


def _time_reasons(shot: ShotAnnotation) -> Iterator[tuple[str, str]]:
    seconds = shot.end_time - shot.start_time
    if seconds < SHORT_SECONDS:
        yield "very short", f"{seconds:.2f} s"
    if seconds > LONG_SECONDS:
        yield "very long", f"{seconds:.1f} s"
    edges = (
        ("start", shot.annotated_start_time, shot.start_time),
        ("end", shot.annotated_end_time, shot.end_time),
    )
    for edge, annotated, detected in edges:
        if annotated is not None and abs(annotated - detected) > FAR_SECONDS:
            yield "far from annotation", f"{edge} annotated at {annotated:.1f} s, cut at {detected:.1f} s"


def _caption_reasons(shot: ShotAnnotation, said: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Reasons in the captions; ``said`` holds the shot that said each caption of the story first."""
    for kind, text in (("narrative", shot.narrative_caption), ("descriptive", shot.descriptive_caption)):
        words = text.split()
        if not words:
            yield "no caption", kind
            continue
        if len(words) < FEW_WORDS:
            yield "few words", f"{kind}: {len(words)}"
        first = said.setdefault(f"{kind} {' '.join(words).lower()}", shot.position)
        if first != shot.position:
            yield "repeated caption", f"{kind}, as shot {first + 1}"


def _picture_reasons(tile: np.ndarray, before: np.ndarray | None) -> Iterator[tuple[str, str]]:
    level, deviation = float(np.percentile(tile, 99)), float(tile.std())
    if level < BLACK_LEVEL:
        yield "black", f"level {level:.0f}"
        return
    if deviation < FLAT_DEVIATION:
        yield "one colour", f"deviation {deviation:.1f}"
    if before is not None:
        difference = float(np.abs(tile - before).mean())
        if difference < SAME_DIFFERENCE:
            yield "same picture", f"difference {difference:.1f}"


def _encoded(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, kind, **settings)
    return target.getvalue()


def _stories(directory: Path, chosen: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the page shows of each chosen story."""
    keys = frozenset(chosen)
    for tar in _shards(directory, "stories"):
        for key, members in read_samples(tar, ("json", "png", "jpg"), keys):
            where = f"{tar}: {key}"
            story = parse("stories", members["json"], where)
            assert isinstance(story, StoryRecord)
            yield {
                "record": story,
                "board": _fitted(members["jpg"], _board(members["jpg"], story, where)),
                "rows": _rows(story),
                "sheet": _sheet(_picture(members["png"], where)) if story.references else None,
                "shown": {image.character for image in story.references},
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
    for tar in _shards(directory, "audio"):
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
        (whole["references"]["shots_with_reference"], "shots with a reference from another shot"),
        (whole["audio_clips"], "audio clips"),
    ]
    return [(f"{value:,}" if isinstance(value, int) else value, label) for value, label in numbers if value]


def _funnel(found: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Steps from films to shots one can train on: label, number, and what was lost before it."""
    whole, lost = found["whole"], found["dropped"]
    references = whole["references"]
    rest = len(lost["lines"]) - lost["films"]
    without_character = whole["shots"] - references["shots_with_character"]
    without_reference = references["shots_with_character"] - references["shots_with_reference"]
    return [
        ("films found", whole["videos"] + lost["films"], ""),
        ("films kept", whole["videos"], f"{lost['films']} dropped" if lost["films"] else "none dropped"),
        ("stories", whole["stories"], f"{rest} stories, clips or scripts dropped" if rest else "none dropped"),
        ("shots", whole["shots"], "each story is covered by its shots"),
        ("shots with a character", references["shots_with_character"], f"{without_character} show none"),
        ("shots with a reference", references["shots_with_reference"], f"{without_reference} have none in another shot"),
    ]


def _histograms(found: dict[str, Any], whole: Tally) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "paper": paper,
            "numbers": found["whole"]["distributions"][name],
            "svg": histogram(whole.values[name], paper, label),
        }
        for name, (label, paper) in MEASURES.items()
        if name in found["whole"]["distributions"]
    ]


def histogram(values: Sequence[float], paper: float | None, label: str, width: int = 320, height: int = 110) -> Markup:
    """A histogram as SVG, with a line at the values' mean and a dashed one at the paper's.

    The last bin also holds what lies above it, so that one outlier does not flatten all others.
    """
    numbers = np.asarray(values, dtype=np.float64)
    whole = bool((numbers == numbers.round()).all()) and float(np.quantile(numbers, 0.99)) - float(numbers.min()) <= 24
    low = min(float(numbers.min()), paper or np.inf) if whole else 0.0
    high = max(float(np.quantile(numbers, 0.99)), 1.15 * (paper or 0.0), low + 1)
    edges = (
        np.arange(np.floor(low) - 0.5, np.ceil(high) + 1)
        if whole
        else np.linspace(low, high, int(np.clip(2 * len(numbers) ** 0.5, 8, 24)) + 1)
    )
    counts, _ = np.histogram(np.minimum(numbers, edges[-1]), edges)
    bottom, scale = height - 18, width / (edges[-1] - edges[0])
    bars = "".join(
        f'<rect x="{(left - edges[0]) * scale + 0.5:.1f}" y="{bottom - size:.1f}" '
        f'width="{max(1.0, (right - left) * scale - 1):.1f}" height="{size:.1f}" fill="#b9c6f4"><title>{count}</title></rect>'
        for left, right, count in zip(edges, edges[1:], counts)
        if (size := (bottom - 6) * count / counts.max())
    )
    lines = f'<line x1="0" x2="{width}" y1="{bottom}" y2="{bottom}" stroke="#cfcad8"/>'
    for mean, style in ((float(numbers.mean()), 'stroke="#3b5bdb"'), (paper, 'stroke="#d6452b" stroke-dasharray="4 3"')):
        if mean is not None:
            x = min(max((mean - edges[0]) * scale, 1), width - 1)
            lines += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}" stroke-width="2" {style}/>'
    over = numbers.max() > edges[-1]
    shift = 0.5 if whole else 0.0
    ends = ((0, "start", f"{edges[0] + shift:g}"), (width, "end", f"{edges[-1] - shift:.3g}{' and over' if over else ''}"))
    marks = "".join(f'<text x="{x}" y="{height - 4}" text-anchor="{side}">{text}</text>' for x, side, text in ends)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, f"histogram: {label}", Markup(bars + lines + marks)
    )
