import av
import films
import numpy as np
import pytest

from curation.clips import ClipConfig, ClipSpan, cut_clips, sample_clip, write_flac
from curation.collect import read_film
from curation.video import read_frames

TIMES = np.cumsum([0] + [0.02 + 0.03 * (number % 3) for number in range(39)])


def cut(film, folder, *spans, fps=24, times=None, config=None):
    times = times if times is not None else [index / fps for index in range(1000)]
    wanted = [ClipSpan(folder / f"{start}-{end}.mp4", start, end, times[start], times[end]) for start, end in spans]
    return wanted, cut_clips(read_film(film), wanted, config or ClipConfig())


def test_a_clip_holds_exactly_its_frames(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=60)
    for span, info in zip(*cut(film, tmp_path, (0, 7), (7, 40), (40, 60))):
        numbers = [films.read_number(frame.image) for frame in read_frames(span.path)]
        assert numbers == list(range(span.start_frame, span.end_frame))
        assert info.frames == len(numbers)
        assert info.fps == pytest.approx(24)


def test_clips_may_overlap_and_a_single_frame_is_a_clip(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=30)
    spans, _ = cut(film, tmp_path, (3, 20), (10, 11), (5, 30))
    for span in spans:
        assert [films.read_number(frame.image) for frame in read_frames(span.path)] == list(
            range(span.start_frame, span.end_frame)
        )


def test_variable_frame_times_stay(tmp_path):
    film = films.write_film(tmp_path / "film.mkv", frames=39, times=list(TIMES[:39]))
    [span], _ = cut(film, tmp_path, (5, 30), times=list(TIMES))
    kept = [frame.pts for frame in read_frames(span.path)]
    assert kept == pytest.approx(TIMES[5:30] - TIMES[5], abs=0.0015)


@pytest.mark.parametrize(("size", "stored"), [((853, 479), (480 * 853 // 479 // 2 * 2, 478)), ((160, 96), (160, 96))])
def test_odd_and_small_films_keep_their_size_but_for_the_last_odd_line(tmp_path, size, stored):
    film = films.write_film(tmp_path / "film.mp4", size=size, frames=4)
    _, [info] = cut(film, tmp_path, (0, 4))
    assert abs(info.width - stored[0]) <= 4
    assert info.height == stored[1]


def test_large_films_are_stored_at_the_short_side_asked_for(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", size=(320, 180), frames=4)
    _, [info] = cut(film, tmp_path, (0, 4), config=ClipConfig(short_side=90))
    assert (info.width, info.height) == (160, 90)


def test_sound_lies_where_its_pictures_are(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=72, sound=films.clicks(3.0, [1.5]))
    [span], [info] = cut(film, tmp_path, (24, 60))
    assert info.has_audio
    with av.open(str(span.path)) as container:
        stream = container.streams.audio[0]
        heard = [(float(frame.pts * stream.time_base), np.abs(frame.to_ndarray()).max()) for frame in container.decode(stream)]
    loudest = max(heard, key=lambda piece: piece[1])[0]
    assert loudest == pytest.approx(0.5, abs=0.03)


def test_a_silent_film_gives_a_clip_without_sound(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=10)
    [span], [info] = cut(film, tmp_path, (0, 10))
    assert not info.has_audio
    with av.open(str(span.path)) as container:
        assert not container.streams.audio


def test_equal_settings_give_equal_bytes(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=40, sound=films.tone(2.0))
    blobs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        [span], _ = cut(film, tmp_path / name, (4, 30))
        blobs.append(span.path.read_bytes())
    assert blobs[0] == blobs[1]


def test_flac_holds_every_sample(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=48, sound=films.tone(2.0))
    assert write_flac(read_film(film), ClipSpan(tmp_path / "a.mp4", 0, 0, 0.5, 1.75), tmp_path / "a.flac") == 60_000
    with av.open(str(tmp_path / "a.flac")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 60_000


def test_samples_are_spread_over_the_asked_for_frames(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=40)
    got = list(sample_clip(film, 10, 30, 4))
    assert [index for index, _ in got] == [films.read_number(image) for _, image in got] == [12, 17, 22, 27]
    assert [index for index, _ in sample_clip(film, 5, 7, 9)] == [5, 6]


def test_first_and_last_frame_are_key_frames(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=40)
    [span], _ = cut(film, tmp_path, (5, 25))
    with av.open(str(span.path)) as container:
        keys = [frame.key_frame for frame in container.decode(video=0)]
    assert keys == [True, *[False] * 18, True]
