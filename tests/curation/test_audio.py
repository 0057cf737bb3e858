from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import films
import numpy as np
import pytest
from voices import talk

from animeshooter_dataset import AnnotatedBy, DataError, ShotAnnotation, Storyboard, StoryRecord
from curation import clips as clips_module
from curation.audio import AudioConfig, choose_clips, write_clips
from curation.clips import ClipConfig, ClipSpan, FilmShots, cut_clips
from curation.collect import read_film
from curation.cuts import Span
from curation.listener import Heard
from curation.sample_films.films.paper_boat import FILM as PAPER_BOAT
from curation.sample_films.script import script
from curation.sample_films.sound import melody
from curation.sample_films.soundtrack import mix
from curation.sample_films.storyboard import timeline
from curation.script import NoAnswer, SoundScript
from curation.sound import hear

FPS, RATE = 12, 48000
ORIGIN = {"video": "film-12345678", "split": "train", "annotator": AnnotatedBy(kind="sidecar")}


def noise(seconds, level, seed=0):
    return level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


class Told:
    """A film of numbered pictures with shots of the given lengths in seconds, its sound, and the one story it is."""

    def __init__(self, folder, lengths, sound, *, fps=FPS, stored=False):
        edges = np.round(np.cumsum([0, *lengths]) * fps).astype(int).tolist()
        sound = None if sound is None else np.repeat(np.atleast_2d(sound).astype(np.float32), 2, axis=0)[:2]
        path = films.write_film(
            folder / "film.mov", size=(64, 48), fps=fps, frames=edges[-1], sound=sound, sound_codec="pcm_s16le"
        )
        self.film = read_film(path)
        spans = [Span(a, b, a, b, "cut" if a else "start") for a, b in pairwise(edges)]
        times = [edge / fps for edge in edges]
        stretches = [ClipSpan(folder / f"{a:05d}.mp4", a, b, a / fps, b / fps) for a, b in pairwise(edges)]
        infos = cut_clips(self.film, stretches, ClipConfig()) if stored else []
        pts = np.arange(edges[-1]) / fps
        cuts = SimpleNamespace(frames=SimpleNamespace(pts=pts), fps=float(fps))
        self.whole = FilmShots(self.film, cuts, spans, times, [stretch.path for stretch in stretches], infos)
        self.heard = hear(self.film)
        self.story = story_of(edges, fps)

    def choose(self, sounds=(), listener=None, **config):
        return choose_clips(self.whole, self.heard, self.story, sounds, ORIGIN, AudioConfig(**config), listener)

    def write(self, chosen, folder):
        return write_clips(self.whole, self.heard, chosen, ClipConfig(), folder)


def story_of(edges, fps):
    shots = [
        ShotAnnotation(
            key=f"film-000-{place:03d}",
            position=place,
            start_frame=first,
            end_frame=last,
            start_time=round(first / fps, 6),
            end_time=round(last / fps, 6),
            clean_start_frame=first,
            clean_end_frame=last,
            transition_in="cut" if place else "start",
            characters=["hen"] if place % 2 else ["cat"],
            scene="yard",
            narrative_caption=f"Step {place}.",
            descriptive_caption=f"Picture {place}.",
        )
        for place, (first, last) in enumerate(pairwise(edges))
    ]
    return StoryRecord(
        video="film-12345678",
        split="train",
        annotator=AnnotatedBy(kind="measure"),
        key="film-000",
        position=0,
        fps=fps,
        source_height=48,
        source_width=64,
        start_frame=0,
        end_frame=edges[-1],
        start_time=0,
        end_time=round(edges[-1] / fps, 6),
        storyline="A hen and a cat.",
        characters=[{"id": "hen", "appearance": "red"}, {"id": "cat", "appearance": "grey"}],
        scenes=[{"id": "yard", "environment": "a yard"}],
        shots=shots,
        references=[],
        storyboard=Storyboard(columns=1, tile_height=2, tile_width=2, frames=[0]),
    )


def noted(start, end, **words):
    texts = {"type": "sound effect", "sound_description": "a tone", "visual_context": "a walk"}
    texts |= {"narrative_caption": "They walk.", "descriptive_caption": "Ovals walk."}
    return SoundScript(start=start, end=end, **(texts | words))


def edges(clips):
    return [(clip.start_frame / FPS, clip.end_frame / FPS) for clip in clips]


BEDS = np.concatenate([noise(8, 0.003), noise(8, 0.1, 1), np.zeros(4 * RATE)])
"""Quiet noise, loud noise and silence."""


# Clips by measure


def test_clips_are_cut_where_sound_and_picture_change_together(tmp_path):
    chosen, dropped = Told(tmp_path, [4, 4, 5, 3, 4], BEDS).choose()
    assert edges(chosen) == [(0, 8), (8, 16), (16, 20)]
    assert dropped == []
    assert [clip.words.type for clip in chosen] == ["ambience", "ambience", "silence"]


def test_a_change_of_sound_inside_a_shot_divides_nothing(tmp_path):
    chosen, _ = Told(tmp_path, [6.5, 7, 6.5], BEDS).choose()
    assert {edge for clip in edges(chosen) for edge in clip} <= {0, 6.5, 13.5, 20}


def test_every_clip_is_over_three_seconds_and_they_join(tmp_path):
    beds = np.concatenate([noise(2, level, seed) for seed, level in enumerate((0.003, 0.1, 0.01, 0.2, 0.001, 0.1, 0.003))])
    chosen, _ = Told(tmp_path, [2] * 7, beds).choose()
    assert len(chosen) > 1
    assert all(clip.end_time - clip.start_time > 3 for clip in chosen)
    assert edges(chosen)[0][0] == 0
    assert edges(chosen)[-1][1] == 14
    assert all(before.end_frame == after.start_frame for before, after in pairwise(chosen))


def test_a_clip_over_the_longest_length_is_divided_where_it_can_be(tmp_path):
    told = Told(tmp_path, [5, 5, 5, 5], noise(20, 0.05))
    assert len(told.choose()[0]) == 1
    assert all(end - start <= 10 for start, end in edges(told.choose(max_seconds=10)[0]))


def test_a_story_with_long_music_or_speech_gives_no_clips_and_a_line_that_says_so(tmp_path):
    music = np.concatenate([0.5 * melody("pluck", (57, 60, 64, 60, 57, 60, 65, 60), 0.25, 10), noise(6, 0.001)])
    chosen, [lost] = Told(tmp_path, [8, 8], music).choose()
    assert chosen == []
    assert lost.stage == "audio"
    assert "long music (speech 0%, music " in lost.reason
    (tmp_path / "talk").mkdir()
    told = Told(tmp_path / "talk", [8, 8], 0.5 * talk(16))
    assert "long speech" in told.choose()[1][0].reason
    assert told.choose(max_speech=1.0)[0][0].words.type == "speech"


def test_a_film_without_sound_gives_no_clips(tmp_path):
    assert Told(tmp_path, [4, 4], None).choose() == ([], [])


def test_a_story_that_is_too_short_says_so(tmp_path):
    _, [lost] = Told(tmp_path, [2], noise(2, 0.1)).choose()
    assert "2.0 s long, not over 3 s" in lost.reason


def test_measured_words_say_what_was_measured_and_who_says_so(tmp_path):
    wave = noise(12, 0.0015) + films.clicks(12, [2.0, 5.5], channels=1)[0]
    [clip], _ = Told(tmp_path, [3, 7, 2], wave).choose()
    words = clip.words
    assert clip.origin["annotator"] == AnnotatedBy(kind="measure")
    assert words.type == "sound effect"
    assert "2 sounds begin, at 2.0, 5.5 s." in words.sound_description
    assert "LUFS" in words.sound_description
    assert words.visual_context == "3 shots, with cuts at 3.0 s, 10.0 s; the longest: Step 1."
    assert words.narrative_caption == "Step 0. Step 1. Step 2."
    assert (words.descriptive_caption, words.scene, words.characters) == ("Picture 1.", "yard", ("cat", "hen"))


# Clips that an annotator gives


def test_edges_of_noted_clips_are_put_on_the_boundaries_they_are_meant_for(tmp_path):
    told = Told(tmp_path, [5, 5, 5, 5], noise(20, 0.05))
    chosen, dropped = told.choose([noted(0.0, 4.75), noted(5.2, 9.9), noted(11.0, 15.5)])
    assert edges(chosen) == [(0, 5), (5, 10), (11, 15.5)]
    assert [clip.key for clip in chosen] == ["film-000-a000", "film-000-a001", "film-000-a002"]
    assert all(clip.origin == ORIGIN for clip in chosen)
    assert dropped == []


def test_noted_clips_are_kept_where_music_is_long_and_dropped_where_they_cannot_be(tmp_path):
    told = Told(tmp_path, [5, 5], 0.5 * melody("pluck", (57, 60, 64, 60), 0.25, 10))
    chosen, dropped = told.choose([noted(0, 5), noted(6, 8.5), noted(30, 40)])
    assert edges(chosen) == [(0, 5)]
    assert "is 2.5 s long, not over 3 s" in dropped[0].reason
    assert "lies outside the film" in dropped[1].reason
    (tmp_path / "silent").mkdir()
    _, [lost] = Told(tmp_path / "silent", [5, 5], None).choose([noted(0, 5)])
    assert "the film has no sound" in lost.reason


@pytest.mark.parametrize("how", ["sidecar", "measured"])
def test_sound_events_are_in_the_clip_they_belong_to(tmp_path, how):
    """The soundtrack of a sample film over its shots; the maker's noted edges are off by up to a quarter of a second."""
    time = timeline(PAPER_BOAT)
    wave, events = mix(PAPER_BOAT, time, 0)
    lengths = [shot.frames / 24 for shot in PAPER_BOAT.shots]
    told = Told(tmp_path, lengths, wave.T, fps=24)
    notes = [SoundScript(**note) for note in script(PAPER_BOAT, time, 0)["audio"]]
    rng = np.random.default_rng(1)
    given = [noted(max(0, note.start + rng.uniform(-0.25, 0.25)), note.end + rng.uniform(-0.25, 0.25)) for note in notes]
    chosen, dropped = told.choose(given if how == "sidecar" else (), max_music=1.0)
    assert dropped == []
    assert all(clip.end_time - clip.start_time > 3 for clip in chosen)
    assert all(before.end_frame == after.start_frame for before, after in pairwise(chosen))
    right = []
    for event in events:
        [clip] = [clip for clip in chosen if clip.start_time - 1e-6 <= event["start"] < clip.end_time]
        inside = min(event["end"], clip.end_time) - event["start"]
        right.append(inside > (event["end"] - event["start"]) / 2)
        if how == "sidecar":
            place = next(n for n, note in enumerate(notes) if note.start - 1e-6 <= event["start"] < note.end)
            right[-1] &= clip.position == place
    assert len(right) > 50
    assert np.mean(right) >= 0.95


# Stored clips


def test_stored_clips_hold_their_frames_and_their_sound(tmp_path):
    wave = np.concatenate([noise(6, 0.003), noise(6, 0.1)]) + films.clicks(12, [1.5, 7.25], channels=1)[0]
    told = Told(tmp_path, [6, 6], wave)
    chosen, _ = told.choose()
    (tmp_path / "out").mkdir()
    records = told.write(chosen, tmp_path / "out")
    assert [(record.start_frame, record.end_frame, record.samples) for record in records] == [
        (0, 72, 288000),
        (72, 144, 288000),
    ]
    for record, click in zip(records, (1.5, 1.25)):
        assert record.shots == [f"film-000-{record.position:03d}"]
        assert record.sound == told.heard.scores(record.start_time, record.end_time)
        assert record.sound.loudness is not None
        with av.open(str(tmp_path / "out" / f"{record.key}.flac")) as container:
            sound = np.concatenate([frame.to_ndarray().reshape(-1, 2)[:, 0] for frame in container.decode(audio=0)])
        assert np.abs(sound).argmax() / RATE == pytest.approx(click, abs=0.003)
        with av.open(str(tmp_path / "out" / f"{record.key}.mp4")) as container:
            numbers = [films.read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        assert numbers == list(range(record.start_frame, record.end_frame))


def test_a_film_is_decoded_once_for_the_clips_of_all_its_stories(tmp_path, monkeypatch):
    told = Told(tmp_path, [4, 4, 4], noise(12, 0.05))
    chosen = [clip for start in (0, 4, 8) for clip in told.choose([noted(start, start + 4)])[0]]
    passes = []
    decode = clips_module.decode
    monkeypatch.setattr(clips_module, "decode", lambda *given, **how: passes.append(given) or decode(*given, **how))
    monkeypatch.setattr("curation.audio.write_flac", lambda *_: 1)
    renamed = [clip.__class__(**{**vars(clip), "key": f"film-{n:03d}-a000"}) for n, clip in enumerate(chosen)]
    assert [record.key for record in told.write(renamed, tmp_path)] == [clip.key for clip in renamed]
    assert len(passes) == 1
    assert told.write([], tmp_path) == []


# Listeners


class Ear:
    """A listener that keeps what it got and answers, or fails as it is told."""

    annotator = AnnotatedBy(kind="openai", model="ear")

    def __init__(self, *answers):
        self.answers, self.clips = list(answers), []

    def listen(self, clip):
        self.clips.append(clip)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_listener_hears_each_clip_and_gives_its_words(tmp_path):
    told = Told(tmp_path, [4, 4, 8, 4], BEDS, stored=True)
    rain, calm = (Heard(type="ambience", sound_description=text, visual_context="a yard") for text in ("rain", "calm"))
    listener = Ear(rain, DataError("the model gave no usable description of a sound"), calm)
    chosen, [lost] = told.choose(listener=listener)
    assert [clip.words.sound_description for clip in chosen][::2] == ["rain", "calm"]
    assert "noise-like" in chosen[1].words.sound_description
    assert [clip.origin["annotator"].kind for clip in chosen] == ["openai", "measure", "openai"]
    assert "keeps its measured words" in lost.reason
    heard = listener.clips[0]
    assert [films.read_number(frame) for frame in heard.frames] == [16, 48, 80]
    assert heard.sound.shape == (1, 8 * 16000)
    assert heard.captions == ["Step 0. Picture 0.", "Step 1. Picture 1."]


def test_a_listener_that_cannot_be_asked_stops_the_film(tmp_path):
    told = Told(tmp_path, [4, 4], noise(8, 0.05), stored=True)
    with pytest.raises(NoAnswer):
        told.choose(listener=Ear(NoAnswer("no key")))


def test_noted_words_are_not_asked_for_again(tmp_path):
    told = Told(tmp_path, [4, 4], noise(8, 0.05))
    chosen, _ = told.choose([noted(0, 4)], listener=Ear())
    assert chosen[0].words.sound_description == "a tone"


def test_reasons_name_the_film(tmp_path):
    told = Told(tmp_path, [2], noise(2, 0.1))
    assert told.choose()[1][0].reason.startswith(str(Path(told.film.path)))
