"""Dataset directories written straight from records, as large as wanted, for tests of what reads records and not media."""

import io

from PIL import Image, ImageDraw
from records import annotation, shot_record, story_record

from animeshooter_dataset import DroppedRecord, Evidence, FilmRecord, RightsRecord, ShotScores, SoundScores, Storyboard
from curation.pack import CuratedStory, Packer
from curation.rules import dump_rules, load_rules, rejected_by

TILE = (64, 36)
GOOD = {
    "text_cover": 0.0,
    "motion": 0.1,
    "held_frames": 0.5,
    "brightness": 120.0,
    "contrast": 40.0,
    "black_frames": 0.0,
    "grey_frames": 0.0,
    "sharpness": 150.0,
    "picture_share": 1.0,
    "cut_confidence": 0.9,
}
"""Scores of a shot that no rule rejects."""


class Rendered(CuratedStory):
    """A story whose media are made when they are asked for: fake clips, real pictures."""

    def media(self, key, member):
        if member == "jpg":
            return board(len(self.story.shots))
        return SHEET if member == "png" else b"no clip" if member == "mp4" else b"no sound"


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


SHEET = encoded(Image.new("RGBA", (16, 16), (200, 60, 40, 255)), "PNG")
BOARDS = {}


def board(shots):
    """A storyboard of coloured tiles with a shape in each."""
    if shots not in BOARDS:
        image = Image.new("RGB", (TILE[0] * min(5, shots), TILE[1] * -(-shots // 5)))
        canvas = ImageDraw.Draw(image)
        for place in range(shots):
            x, y = place % 5 * TILE[0], place // 5 * TILE[1]
            canvas.rectangle((x, y, x + TILE[0], y + TILE[1]), fill=(40 + 20 * place % 200, 90, 160 - 12 * place % 150))
            canvas.ellipse((x + 8, y + 6, x + 40, y + 30), fill=(220, 200, 60 + 15 * place % 180))
        BOARDS[shots] = encoded(image, "JPEG")
    return BOARDS[shots]


def story(film, number, shots, scores=None):
    """One story of ``film``; ``scores`` maps a position to scores that differ from :data:`GOOD`."""
    key = f"{film}-{number:03d}"
    told = [annotation(position, key=f"{key}-{position:03d}") for position in range(shots)]
    text = {"video": film, "licence": "CC0-1.0"}
    records = [
        shot_record(
            position,
            shots,
            **text,
            key=f"{key}-{position:03d}",
            story=key,
            references=[],
            characters_without_reference=["Fox"],
            scores=ShotScores(**GOOD | (scores or {}).get(position, {})),
            sound=SoundScores(speech=0.1, loudness=-20.0, peak=-1.0, silence=0.0, clipping=0.0),
        )
        for position in range(shots)
    ]
    layout = Storyboard(columns=min(5, shots), tile_height=TILE[1], tile_width=TILE[0], frames=list(range(shots)))
    change = {**text, "key": key, "position": number, "shots": told, "storyboard": layout}
    record = story_record(shots).model_copy(update=change)
    return Rendered(record, records, [], None, {"too small": 1})


def lost_films():
    """Lines on films that were not kept: one unavailable, one unreadable, one there twice, one with subtitles, one too long."""
    passed = Evidence(check="animation", passed=True, value=0.9, limit=0.5)
    subtitles = Evidence(check="subtitles", passed=False, value=0.41, limit=0.2, detail="at the bottom, <b>for 41 %</b>")
    length = Evidence(check="length", passed=False, value=1500.0, limit=1200.0)
    screened = {"state": "dropped", "stage": "screen"}
    return [
        FilmRecord(film="https://films.example/1", state="unavailable", stage="collect", reason="gone"),
        FilmRecord(film="torn.mp4", state="dropped", stage="collect", reason="torn.mp4: no picture decodes"),
        FilmRecord(
            film="twin.mp4", state="dropped", stage="collect", reason="twin.mp4: the same bytes as one.mp4, which is kept"
        ),
        FilmRecord(video="subs", film="subs.mp4", **screened, reason="subtitles", evidence=[passed, subtitles]),
        FilmRecord(video="long", film="long.mp4", **screened, reason="over 20 minutes", evidence=[passed, length]),
    ]


def write_packed(directory, films=2, stories=2, shots=4, scores=None, rules=None, shares=None, shard_size=256 * 2**20):
    """Write a dataset; ``scores`` maps a shot's key to scores that differ from :data:`GOOD`. Returns the directory."""
    rules = load_rules() if rules is None else rules
    directory.mkdir(parents=True)
    with Packer(directory, shares or {"train": 1.0}, shard_size, lambda row: rejected_by(rules, row)) as packer:
        for lost in lost_films():
            packer.add_film(lost, None)
            packer.add_dropped([DroppedRecord(film=lost.film, stage=lost.stage, reason=lost.reason)])
        for number in range(films):
            film = f"film{number:05d}"
            passed = [Evidence(check="animation", passed=True, value=0.8, limit=0.5)]
            counts = {"stories": stories, "shots": stories * shots, "evidence": passed}
            rights = RightsRecord(video=film, licence="CC0-1.0", state="kept", sha256="0" * 64)
            packer.add_film(FilmRecord(video=film, film=f"{film}.mp4", state="kept", **counts), rights)
            for place in range(stories):
                changed = {p: (scores or {}).get(f"{film}-{place:03d}-{p:03d}", {}) for p in range(shots)}
                packer.add(story(film, place, shots, changed))
        settings = {"shares": shares, "shard_size": shard_size}
        packer.finish({"settings": settings, "tools": {}, "rules": dump_rules(rules)})
    return directory


def repack(source, out, change):
    """Write a dataset anew with records that ``change(record)`` gives; media stay. Returns ``out``."""
    import json

    from animeshooter_dataset import MEMBERS, read_lines, shards, splits
    from curation.filter import stories_of

    manifest = json.loads((source / "manifest.json").read_text())
    out.mkdir(parents=True)
    with Packer(out, {"train": 1.0}, 256 * 2**20, lambda row: []) as packer:
        packer.reject = lambda row: marks.get(row["key"], [])
        marks = {}
        for name in ("films", "rights"):
            packer.lines[name].write((source / f"{name}.jsonl").read_bytes())
        packer.add_dropped(read_lines(source / "dropped.jsonl", DroppedRecord))
        for config in MEMBERS:
            for split in splits(source, config):
                for tar in shards(source, config, split):
                    for records, media in stories_of(tar, config):
                        changed = [change(record) for record in records]
                        marks |= {record.key: record.rejected_by for record in changed if config == "shots"}
                        packer.add_records(config, changed, lambda key, member, media=media: media[key][member])
        packer.finish({"settings": manifest["settings"], "tools": {}, "rules": manifest["rules"]})
    return out
