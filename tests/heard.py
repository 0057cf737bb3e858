"""A dataset of films whose pictures say their number and whose sound clicks at known times, with several audio clips each.

Films, clips and sound are real: written, cut and stored by what builds use. A second of film is :data:`FPS` frames; it clicks
at every full :data:`BEAT` until :data:`SILENT_FROM`, from where on it is digitally silent.
"""

import io

import films
import packed
from PIL import Image
from records import CHARACTERS, annotation, shot_record, story_record

from animeshooter_dataset import AnnotatedBy, AudioRecord, FilmRecord, Reference, RightsRecord, SoundScores, Storyboard
from curation.clips import ClipConfig, ClipSpan, cut_clips, write_flac
from curation.collect import read_film
from curation.pack import CuratedStory, Packer

FPS, SIZE, SHOTS, SHOT_SECONDS, BEAT, SILENT_FROM = 12, (128, 72), 4, 5, 0.5, 14
CLIPS = [(0, 4), (4, 9), (9, 13.5), (14, 20)]
"""Seconds of the audio clips in each film; the last is silent, and lists only one of the characters that its shots show."""
COLOURS = {"Fox": (220, 60, 30), "Crow": (30, 60, 220)}


def cast(position):
    return ["Fox", "Crow"] if position % 2 else ["Fox"]


def sheet(references):
    """A sheet with one coloured square of 16 x 16 for each reference."""
    image = Image.new("RGBA", (16 * max(1, len(references)), 16), (0, 0, 0, 0))
    for number, reference in enumerate(references):
        image.paste((*COLOURS[reference.character], 255), (16 * number + 4, 4, 16 * number + 12, 12))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def shot(video, story, position):
    others = [(name, other) for name in cast(position) for other in range(SHOTS) if other != position and name in cast(other)]
    references = [
        Reference(
            character=name,
            box=(16 * place, 0, 16 * place + 16, 16),
            shot=f"{story}-{other:03d}",
            frame=other * FPS * SHOT_SECONDS + 2,
            source_box=(0, 0, 16, 16),
        )
        for place, (name, other) in enumerate(others)
    ]
    told = annotation(position, FPS * SHOT_SECONDS, FPS, key=f"{story}-{position:03d}", characters=cast(position))
    shared = {"video": video, "story": story, "licence": "CC0-1.0", "references": references, "story_characters": CHARACTERS}
    size = {"frames": FPS * SHOT_SECONDS, "fps": float(FPS), "height": SIZE[1], "width": SIZE[0]}
    return shot_record(shots=SHOTS, **told.model_dump() | shared | size)


def clip(video, story, position):
    start, end = CLIPS[position]
    over = [number for number in range(SHOTS) if number * SHOT_SECONDS < end and start < (number + 1) * SHOT_SECONDS]
    return AudioRecord(
        key=f"{story}-a{position:03d}",
        position=position,
        video=video,
        split="train",
        licence="CC0-1.0" if position else "CC BY 4.0",
        annotator=AnnotatedBy(kind="sidecar"),
        start_frame=round(start * FPS),
        end_frame=round(end * FPS),
        start_time=start,
        end_time=end,
        frames=round((end - start) * FPS),
        fps=float(FPS),
        height=SIZE[1],
        width=SIZE[0],
        has_audio=True,
        story=story,
        shots=[f"{story}-{number:03d}" for number in over],
        type="silence" if start >= SILENT_FROM else "sound effect",
        sound_description=f"Clicks of {story}, part {position}.",
        visual_context=f"A strip counts in part {position}.",
        narrative_caption=f"Part {position} goes by.",
        descriptive_caption=f"Numbers of {story} in part {position}.",
        characters=["Crow"] if position == 3 else sorted({name for number in over for name in cast(number)}),
        sample_rate=48000,
        channels=2,
        samples=round((end - start) * 48000),
        sound=SoundScores(speech=0.0, silence=1.0 if start >= SILENT_FROM else 0.9, loudness=None),
    )


class Heard(CuratedStory):
    """A story of which sheets and storyboard are drawn when they are asked for."""

    def media(self, key, member):
        if member == "jpg":
            return packed.board(SHOTS)
        if member == "png":
            record = next((record for record in self.shots if record.key == key), None)
            return sheet(record.references if record else [])
        return super().media(key, member)


def write_story(folder, video):
    """Render, cut and store one film of one story."""
    folder.mkdir(parents=True)
    story, seconds = f"{video}-000", SHOTS * SHOT_SECONDS
    sound = films.clicks(seconds, [beat * BEAT for beat in range(int(SILENT_FROM / BEAT))])
    path = films.write_film(folder / "film.mov", size=SIZE, fps=FPS, frames=seconds * FPS, sound=sound, sound_codec="pcm_s16le")
    film = read_film(path)
    shots = [shot(video, story, position) for position in range(SHOTS)]
    clips = [clip(video, story, position) for position in range(len(CLIPS))]
    spans = [
        ClipSpan(folder / f"{each.key}.mp4", each.start_frame, each.end_frame, each.start_time, each.end_time)
        for each in (*shots, *clips)
    ]
    cut_clips(film, spans, ClipConfig(threads=1))
    for span in spans[len(shots) :]:
        write_flac(film, span, span.path.with_suffix(".flac"))
    told = [annotation(p, FPS * SHOT_SECONDS, FPS, key=f"{story}-{p:03d}", characters=cast(p)) for p in range(SHOTS)]
    board = Storyboard(columns=SHOTS, tile_height=packed.TILE[1], tile_width=packed.TILE[0], frames=list(range(SHOTS)))
    change = {"video": video, "key": story, "fps": float(FPS), "shots": told, "storyboard": board, "licence": "CC0-1.0"}
    record = story_record(SHOTS).model_copy(
        update=change | {"end_frame": told[-1].end_frame, "end_time": told[-1].end_time, "characters": CHARACTERS}
    )
    return Heard(record, shots, clips, folder, {}), film


def write_heard(folder, videos=2, shard_size=256 * 2**20):
    """Write a dataset of ``videos`` films in ``folder / "animeshooter"``; returns its directory."""
    directory = folder / "animeshooter"
    directory.mkdir(parents=True)
    with Packer(directory, {"train": 1.0}, shard_size) as packer:
        for number in range(videos):
            video = f"film{number}"
            story, film = write_story(folder / video, video)
            rights = RightsRecord(video=video, licence="CC0-1.0", state="kept", sha256=film.sha256)
            packer.add_film(FilmRecord(video=video, film=f"{video}.mov", state="kept", stories=1, shots=SHOTS), rights)
            packer.add(story)
        packer.finish({"settings": {"shares": {"train": 1.0}, "shard_size": shard_size}, "tools": {}, "rules": []})
    return directory
