"""Datasets whose films all have media and words of their own, and a search for them, however they are stored."""

import hashlib
import json
import random
import tarfile

import packed
import pyarrow.parquet as pq
from records import annotation

from animeshooter_dataset import AudioRecord, DroppedRecord, FilmRecord, RightsRecord
from curation import pack
from curation.rules import dump_rules, load_rules, rejected_by

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
ADDRESS = "https://films.example/watch/{}?token=secret"

WINDOW = 64
WORDS = {"storyline", "narrative_caption", "descriptive_caption", "appearance", "environment", "sound_description"}


def members_of(directory):
    """Every member of every sample by (config, its name)."""
    found = {}
    for tar in sorted(directory.glob("*/*.tar")):
        with tarfile.open(tar) as archive:
            for entry in archive:
                found[tar.parent.name, entry.name] = archive.extractfile(entry).read()
    return found


def words_of(told, name=""):
    """What a record says of a film."""
    if isinstance(told, dict):
        return {word for key, value in told.items() for word in words_of(value, key)}
    if isinstance(told, list):
        return {word for value in told for word in words_of(value, name)}
    return {told} if isinstance(told, str) and name in WORDS and told else set()


def windows(blob):
    return {blob[start : start + WINDOW] for start in range(len(blob) - WINDOW + 1)}


class Sought:
    """Bytes and words of one film that no other film of the dataset shares."""

    def __init__(self, directory, video):
        members = members_of(directory)
        mine = {name: blob for name, blob in members.items() if name[1].startswith(f"{video}-")}
        media = [blob for (_, name), blob in mine.items() if not name.endswith(".json")]
        assert media
        others = [blob for name, blob in members.items() if name not in mine]
        self.windows = set().union(*map(windows, media)) - set().union(*map(windows, others)) - {bytes(WINDOW)}
        told, said = (
            set().union(*(words_of(json.loads(blob)) for (_, name), blob in part if name.endswith(".json")))
            for part in (mine.items(), [item for item in members.items() if item[0] not in mine])
        )
        self.words = told - said
        self.kept = {name: hashlib.sha256(blob).hexdigest() for name, blob in members.items() if name not in mine}

    def found_in(self, folder, but=()):
        """Files below a folder that hold any of it."""
        return [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in but and self._in(path)]

    def _in(self, path):
        blob = path.read_bytes()
        text = blob + (str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else b"")
        forms = {form for word in self.words for form in (word, json.dumps(word)[1:-1], word.replace("<", "&lt;"))}
        if any(word.encode() in text for word in forms):
            return True
        return any(blob[start : start + WINDOW] in self.windows for start in range(len(blob) - WINDOW + 1))


def stored(directory):
    """Hash of each member that a dataset holds."""
    return {name: hashlib.sha256(blob).hexdigest() for name, blob in members_of(directory).items()}


class Film(pack.CuratedStory):
    """A story whose media and words are its own."""

    def media(self, key, member):
        if member in ("png", "jpg"):
            return packed.SHEET if member == "png" else packed.board(len(self.story.shots))
        return random.Random(f"{key}.{member}").randbytes(3000)


def story(video, number, shots):
    told = packed.story(video, number, shots, {1: {"text_cover": 0.9}} if number else {})
    key = told.story.key

    def own(record):
        name = f"{record.key} {record.position}"
        return record.model_copy(update={"narrative_caption": f"Narrated {name}.", "descriptive_caption": f"Described {name}."})

    line = {"storyline": f"What happens in {key}, and why."}
    record = told.story.model_copy(update={**line, "shots": [own(shot) for shot in told.story.shots]})
    records = [own(shot).model_copy(update=line) for shot in told.shots]
    span = {name: getattr(annotation(), name) for name in ("start_frame", "end_frame", "start_time", "end_time")}
    sound = AudioRecord(
        **span,
        key=f"{key}-a000",
        position=0,
        video=video,
        split="train",
        annotator=record.annotator,
        frames=48,
        fps=24.0,
        height=96,
        width=160,
        has_audio=True,
        story=key,
        shots=[f"{key}-000"],
        type="speech",
        sound_description=f"Somebody speaks in {key}.",
        visual_context=f"Somebody is seen in {key}.",
        narrative_caption="",
        descriptive_caption="",
        characters=[],
        sample_rate=16000,
        channels=1,
        samples=32000,
    )
    return Film(record, records, [sound], None, {"too small": 1})


def write(directory, videos=5, stories=2, shots=3, shard_size=30_000, shares=SHARES, lines=True):
    """A dataset of several shards and splits in which every film has media, words and lines of its own."""
    rules = load_rules()
    directory.mkdir(parents=True)
    with pack.Packer(directory, shares, shard_size, lambda row: rejected_by(rules, row)) as packer:
        for number in range(videos):
            video = f"film-{hashlib.sha256(str(number).encode()).hexdigest()[:8]}"
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            rights = {"title": f"The title of {number}", "attribution": f"By the makers of {number}", "licence": "CC0-1.0"}
            source = ADDRESS.format(number).partition("?")[0] if number else "https://youtu.be/aqz-KE-bpKQ"
            ledger = RightsRecord(
                video=video, source=source, uploader=f"Studio {number % 2}", sha256=digest, state="kept", **rights
            )
            twin = FilmRecord(
                film=f"twin-{number}.mp4",
                state="dropped",
                stage="collect",
                reason=f"twin-{number}.mp4: the same bytes as movie {number}.mp4, which is kept",
            )
            lost = [
                DroppedRecord(film=f"movie {number}.mp4", stage="script", reason=f"no story: 'Said in movie {number}'"),
                DroppedRecord(film=twin.film, stage="collect", reason=twin.reason),
            ]
            packer.add_film(twin, None)
            film = FilmRecord(
                video=video, film=f"movie {number}.mp4", state="kept", sha256=digest, stories=stories, shots=stories * shots
            )
            packer.add_film(film, ledger)
            packer.add_dropped(lost if lines else [])
            for place in range(stories):
                packer.add(story(video, place, shots))
        packer.finish({"settings": {"shares": shares, "shard_size": shard_size}, "tools": {}, "rules": dump_rules(rules)})
    return directory


VIDEOS = [f"film-{hashlib.sha256(str(number).encode()).hexdigest()[:8]}" for number in range(40)]


def state(directory):
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
