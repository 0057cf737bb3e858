import os
from contextlib import suppress
from pathlib import Path

import av
import films
import numpy as np
import pytest
from voices import talk

from animeshooter_dataset import SoundScores
from curation import sound
from curation.collect import read_film
from curation.sample_films.sound import EFFECTS, melody
from curation.sound import FilmSound, hear
from curation.video import read_audio

RATE = 48000
RANDOM = np.random.default_rng
TUNES = {
    "pluck": (57, 60, 64, 60, 57, 60, 65, 60, 55, 59, 62, 59),
    "musicbox": (72, 76, 79, 84, 83, 79, 76, 0, 77, 81, 84, 81),
    "pad": (45, 52, 48, 43),
}


def film_of(path, wave, *, rate=RATE, codec="pcm_s16le", **how):
    """A small film whose sound is ``wave``, mono [samples] or [channels, samples]."""
    wave = np.atleast_2d(wave).astype(np.float32)
    wave = np.repeat(wave, 2, axis=0) if how.pop("stereo", len(wave) == 1) else wave
    frames = round(wave.shape[1] / rate * 12)
    return films.write_film(path, size=(64, 48), fps=12, frames=frames, sound=wave, sound_rate=rate, sound_codec=codec, **how)


def heard(path, wave, **how):
    return hear(read_film(film_of(path, wave, **how)))


def noise(seconds, level=0.1, seed=0):
    return level * RANDOM(seed).standard_normal(round(seconds * RATE))


def effects(seconds, *names):
    """Sounds one after the other, one every 0.6 s."""
    wave = np.zeros(round((seconds + 5) * RATE))
    for number in range(int(seconds / 0.6)):
        piece = EFFECTS[names[number % len(names)]][1](RANDOM(number))
        at = int(number * 0.6 * RATE)
        wave[at : at + len(piece)] += 0.5 * piece
    return wave[: round(seconds * RATE)]


def chords(seconds):
    """Three chords of four notes with overtones, a beat every half second."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = np.zeros(time.size)
    for number, beat in enumerate(np.arange(0, seconds, 0.5)):
        since = time[round(beat * RATE) :][:RATE] - beat
        for note in ((60, 64, 67, 72), (57, 60, 64, 69), (55, 59, 62, 67))[number // 4 % 3]:
            pitch = 440 * 2 ** ((note - 69) / 12)
            tone = sum(np.sin(2 * np.pi * pitch * k * since) / k**1.5 for k in range(1, 6))
            wave[round(beat * RATE) :][:RATE] += 0.06 * tone * np.exp(-2 * since)
    return wave


# Loudness, peak, silence, clipping


def test_loudness_is_that_of_the_standards_test_tones(tmp_path):
    """Cases 1 and 3 of EBU Tech 3341, shortened: a 1 kHz stereo sine, and the same between quieter stretches."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(44 * RATE) / RATE)
    level = np.repeat([-36, -23, -36], [4 * RATE, 36 * RATE, 4 * RATE])
    found = heard(tmp_path / "film.mkv", tone * 10 ** (level / 20))
    assert found.scores(5, 15).loudness == pytest.approx(-23.0, abs=0.1)
    assert found.scores(0, 3.5).loudness == pytest.approx(-36.0, abs=0.1)
    assert found.scores(0, 44).loudness == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (44100, 1), (22050, 2)])
def test_loudness_is_that_of_ffmpegs_meter(tmp_path, rate, channels):
    steps = np.repeat([1.0, 0.01, 0.5, 0.0], 3 * rate)
    wave = 0.2 * RANDOM(3).standard_normal((channels, 12 * rate)) * steps
    path = film_of(tmp_path / "film.mkv", wave, rate=rate, stereo=False)
    assert hear(read_film(path)).scores(0, 12).loudness == pytest.approx(ffmpegs_loudness(path), abs=0.1)


def ffmpegs_loudness(path):
    with av.open(str(path)) as container:
        stream, graph, told = container.streams.audio[0], av.filter.Graph(), None
        graph.link_nodes(graph.add_abuffer(template=stream), graph.add("ebur128", "metadata=1"), graph.add("abuffersink"))
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
            with suppress(BlockingIOError, EOFError):
                while True:
                    told = graph.pull().metadata.get("lavfi.r128.I", told)
    return float(told)


def test_silence_is_the_share_below_its_level_and_has_neither_loudness_nor_peak(tmp_path):
    wave = np.concatenate([noise(3), noise(1, 10 ** (-70 / 20)), np.zeros(2 * RATE)])
    found = heard(tmp_path / "film.mkv", wave)
    assert found.scores(0, 6).silence == pytest.approx(0.5, abs=0.01)
    assert found.scores(4.1, 6) == SoundScores(speech=0, music=0, silence=1, loudness=None, peak=None, clipping=0)


def test_peak_is_the_highest_sample_of_the_stretch(tmp_path):
    wave = noise(4, 0.01)
    wave[int(2.5 * RATE)] = 0.5
    found = heard(tmp_path / "film.mkv", wave)
    assert found.scores(2, 3).peak == pytest.approx(-6.02, abs=0.01)
    assert found.scores(0, 2).peak < -20


def test_clipping_counts_runs_at_full_scale_and_no_single_sample(tmp_path):
    loud = np.clip(3 * np.sin(2 * np.pi * 100 * np.arange(2 * RATE) / RATE), -1, 1)
    tips = np.zeros(2 * RATE)
    tips[::500] = 1.0
    found = heard(tmp_path / "film.mkv", np.concatenate([loud, tips]))
    assert found.scores(0, 2).clipping == pytest.approx((np.abs(loud) >= 1).mean(), abs=0.01)
    assert found.scores(2.1, 4).clipping == 0
    assert found.scores(2.1, 4).peak == 0


def test_one_channel_at_full_scale_is_at_full_scale(tmp_path):
    found = heard(tmp_path / "film.mkv", np.clip(3 * films.tone(2, channels=1), -1, 1), stereo=False)
    assert found.scores(0, 2).peak == pytest.approx(0, abs=0.01)
    assert found.scores(0, 2).clipping > 0.3


# Music and speech


@pytest.mark.parametrize("instrument", sorted(TUNES))
def test_melodies_are_music(tmp_path, instrument):
    tune = melody(instrument, TUNES[instrument], {"pad": 2.2}.get(instrument, 0.25), 16)
    assert heard(tmp_path / "film.mkv", 0.5 * tune).scores(1, 15).music > 0.8


def test_chords_are_music_also_under_noise_and_under_speech(tmp_path):
    wave = np.concatenate([chords(10) + noise(10, 0.02), 0.3 * chords(10) + 0.6 * talk(10)])
    found = heard(tmp_path / "film.mkv", wave)
    assert found.scores(0, 10).music > 0.9
    assert found.scores(10, 20).music > 0.5
    assert found.scores(10, 20).speech > 0.5


SOUNDS = {
    "noise": lambda: noise(12),
    "silence": lambda: np.zeros(12 * RATE),
    "a sine": lambda: films.tone(12, channels=1)[0],
    "footsteps": lambda: effects(12, "step", "snow_step", "metal_step"),
    "animals and things": lambda: effects(12, "meow", "door", "ribbit", "splash", "boom", "giggle", "whoosh"),
    "clicks": lambda: films.clicks(12, list(np.arange(0.2, 12, 0.31)), channels=1)[0],
    "speech": lambda: talk(12),
}


@pytest.mark.parametrize("name", sorted(SOUNDS))
def test_other_sounds_are_no_music_and_only_speech_is_speech(tmp_path, name):
    scores = heard(tmp_path / "film.mkv", SOUNDS[name]()).scores(0, 12)
    assert scores.music < 0.1
    assert scores.speech > 0.8 if name == "speech" else scores.speech < 0.05


def test_music_and_speech_are_found_where_they_are(tmp_path):
    wave = np.concatenate([noise(8, 0.02), chords(8), 0.5 * talk(8)])
    found = heard(tmp_path / "film.mkv", wave)
    assert [found.scores(first, first + 8).music > 0.5 for first in (0, 8, 16)] == [False, True, False]
    assert [found.scores(first, first + 8).speech > 0.5 for first in (0, 8, 16)] == [False, False, True]


# Events and changes


def test_onsets_are_where_sounds_begin(tmp_path):
    times = [0.5, 1.75, 2.0, 3.3]
    found = heard(tmp_path / "film.mkv", films.clicks(4, times, rate=44100), rate=44100)
    assert found.onsets(0, 4) == pytest.approx(times, abs=0.02)
    assert found.onsets(1, 3) == pytest.approx([1.75, 2.0], abs=0.02)
    assert found.onsets(2.2, 3.2).size == 0


def test_a_bed_that_changes_is_a_change_and_an_event_is_none(tmp_path):
    wave = np.concatenate([noise(5, 0.003), noise(5, 0.1)])
    wave[int(2.5 * RATE) : int(2.7 * RATE)] += noise(0.2, 0.3)
    found = heard(tmp_path / "film.mkv", wave)
    assert found.change(5) > 20
    assert found.change(2.5) < 2
    assert found.change(5, within=(5, 10)) == 0


# Whole films


def test_a_film_without_sound_has_no_scores(tmp_path):
    found = hear(read_film(films.write_film(tmp_path / "film.mp4", frames=24)))
    assert not found.has_sound
    assert found.scores(0, 1) == SoundScores()
    assert found.onsets(0, 1).size == 0


def test_beyond_its_end_a_film_has_no_scores_and_sound_that_goes_on_is_not_heard(tmp_path):
    path = films.write_film(tmp_path / "film.mkv", frames=24, sound=films.tone(5), sound_codec="pcm_s16le")
    found = hear(read_film(path))
    assert found.duration == pytest.approx(1, abs=0.05)
    assert found.scores(2, 3) == SoundScores()
    assert found.scores(0.5, 9) == found.scores(0.5, found.duration)


def test_stored_sound_is_the_same_and_the_same_bytes_every_time(tmp_path):
    film = read_film(film_of(tmp_path / "film.mp4", 0.5 * talk(6), codec="aac"))
    found = hear(film)
    found.save(tmp_path / "a.npz")
    hear(film).save(tmp_path / "b.npz")
    FilmSound.load(tmp_path / "a.npz").save(tmp_path / "c.npz")
    blobs = {(tmp_path / f"{name}.npz").read_bytes() for name in "abc"}
    assert len(blobs) == 1
    assert FilmSound.load(tmp_path / "a.npz").scores(1, 5) == found.scores(1, 5)


def test_pieces_join(tmp_path, monkeypatch):
    wave = np.concatenate([0.5 * talk(7), 0.5 * melody("pluck", TUNES["pluck"], 0.25, 7)])
    film = read_film(film_of(tmp_path / "film.mov", wave))  # Matroska rounds times, a little otherwise in each piece
    whole = hear(film)
    monkeypatch.setattr(sound, "PIECE", 3.0)
    pieces = hear(film)
    for start, end in ((0, 14), (2, 4), (6, 13)):
        assert pieces.scores(start, end) == whole.scores(start, end)
    assert pieces.onsets(0, 14) == pytest.approx(whole.onsets(0, 14))


def test_the_threads_of_torch_stay_as_they_are(tmp_path):
    import subprocess
    import sys

    code = "import torch; torch.set_num_threads(2); from curation.meters import _vad; _vad(); print(torch.get_num_threads())"
    root = Path(sound.__file__).parent.parent
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert told.stdout.strip() == "2"


@pytest.mark.skipif("ANIMESHOOTER_FILMS" not in os.environ, reason="ANIMESHOOTER_FILMS names no folder of real films")
def test_real_films_sound_as_they_are_known_to():
    folder = Path(os.environ["ANIMESHOOTER_FILMS"])
    speech, music, loudness = {}, {}, {}
    for path in folder.glob("*.mp4"):
        found = hear(read_film(path))
        scores = found.scores(0, found.duration)
        speech[path.stem], music[path.stem], loudness[path.stem] = scores.speech, scores.music, scores.loudness
        assert read_audio(path, 0, 1).any() or found.scores(0, 1).silence == 1
    assert speech["big_buck_bunny_120-258s"] < 0.01
    assert speech["caminandes2_gran_dillama"] < 0.01
    assert speech["sintel_trailer_720p"] > 0.05
    assert speech["glass_half_0-180s"] > 0.3
    assert music["sintel_trailer_720p"] > 0.7
    assert loudness["big_buck_bunny_120-258s"] < -28 < loudness["sintel_trailer_720p"]
