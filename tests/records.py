"""Valid records to start from in tests."""

from animeshooter_dataset import AnnotatedBy, Character, Reference, Scene, ShotAnnotation, ShotRecord, Storyboard, StoryRecord

CHARACTERS = [Character(id="Fox", appearance="a red fox"), Character(id="Crow", appearance="a blue crow")]
SCENES = [Scene(id="Wood", environment="a dark green wood")]


def annotation(position=0, frames=48, fps=24, **change):
    start = position * frames
    values = {
        "key": f"film-000-{position:03d}",
        "position": position,
        "start_frame": start,
        "end_frame": start + frames,
        "start_time": start / fps,
        "end_time": (start + frames) / fps,
        "clean_start_frame": start,
        "clean_end_frame": start + frames,
        "transition_in": "cut" if position else "start",
        "scene": "Wood",
        "characters": ["Fox"],
        "narrative_caption": f"The fox does thing {position}.",
        "descriptive_caption": f"In a dark green wood a red fox does thing {position}.",
    }
    return ShotAnnotation(**values | change)


def shot_record(position=0, shots=3, **change):
    values = {
        **annotation(position).model_dump(),
        "video": "film",
        "split": "train",
        "annotator": AnnotatedBy(kind="sidecar"),
        "frames": 48,
        "fps": 24.0,
        "height": 96,
        "width": 160,
        "has_audio": True,
        "story": "film-000",
        "shots_in_story": shots,
        "storyline": "A fox walks through a wood.",
        "story_characters": CHARACTERS,
        "story_scenes": SCENES,
        "references": [
            Reference(character="Fox", box=(0, 0, 16, 16), shot="film-000-009", frame=470, source_box=(0, 0, 16, 16))
        ],
        "characters_without_reference": [],
    }
    return ShotRecord(**values | change)


def story_record(shots=3, **change):
    told = [annotation(position) for position in range(shots)]
    values = {
        "video": "film",
        "split": "train",
        "annotator": AnnotatedBy(kind="sidecar"),
        "key": "film-000",
        "position": 0,
        "fps": 24.0,
        "source_height": 96,
        "source_width": 160,
        "start_frame": 0,
        "end_frame": told[-1].end_frame,
        "start_time": 0.0,
        "end_time": told[-1].end_time,
        "storyline": "A fox walks through a wood.",
        "characters": CHARACTERS,
        "scenes": SCENES,
        "shots": told,
        "references": [],
        "storyboard": Storyboard(columns=3, tile_height=60, tile_width=100, frames=[24, 72, 120]),
    }
    return StoryRecord(**values | change)
