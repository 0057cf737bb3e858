import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from films import clicks, corrupt, numbered, read_number, tone, truncate, without_index, write_film
from hypothesis import given, settings
from hypothesis import strategies as st

from animeshooter_dataset import DataError
from curation.video import RgbScaler, decode, fit_short_side, probe, read_audio, read_frames


def numbers(path, **options):
    return [read_number(frame.image) for frame in read_frames(path, **options)]


def test_probe_says_what_the_container_holds(tmp_path):
    info = probe(write_film(tmp_path / "a.mp4", size=(320, 180), fps=Fraction(30000, 1001), frames=30, sound=tone(1)))
    assert (info.width, info.height, info.n_frames, info.codec, info.rotation) == (320, 180, 30, "h264", 0)
    assert info.fps_fraction == (30000, 1001)
    assert info.fps == pytest.approx(29.97003)
    assert info.duration == pytest.approx(30 * 1001 / 30000, abs=1e-3)
    assert (info.has_audio, info.audio_rate, info.audio_channels) == (True, 48000, 2)


def test_probe_of_a_silent_film(tmp_path):
    info = probe(write_film(tmp_path / "a.mp4", frames=3))
    assert (info.has_audio, info.audio_rate, info.audio_channels) == (False, None, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("b_frames.mp4", {"options": {"bf": "3", "preset": "medium"}}),
        ("odd.mp4", {"size": (171, 95)}),
        ("odd_subsampled.webm", {"size": (171, 95), "codec": "libvpx", "pix_fmt": "yuv420p"}),
        ("ten_bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("one_frame.mp4", {"frames": 1}),
        ("matroska.mkv", {"sound": tone(1)}),
        ("old.avi", {"codec": "mpeg4"}),
    ],
)
def test_every_frame_comes_once_and_in_order(tmp_path, name, options):
    options = {"frames": 30, **options}
    path = write_film(tmp_path / name, **options)
    frames = list(read_frames(path))
    width, height = options.get("size", (160, 96))
    assert [frame.index for frame in frames] == list(range(options["frames"]))
    assert [read_number(frame.image) for frame in frames] == list(range(options["frames"]))
    assert {frame.image.shape for frame in frames} == {(height, width, 3)}
    assert frames[0].image.dtype == np.uint8
    assert all(b.pts > a.pts for a, b in itertools.pairwise(frames))


def test_colours_survive_decoding_and_scaling(tmp_path):
    red = np.zeros((96, 160, 3), np.uint8)
    red[:, :80] = (220, 40, 30)
    path = write_film(tmp_path / "red.mp4", frames=[red] * 3)
    small = next(read_frames(path, size=(16, 9))).image
    assert small.shape == (9, 16, 3)
    assert np.abs(small[:, :7].astype(int) - (220, 40, 30)).max() <= 8
    assert small[:, 9:].max() <= 8


def test_threads_change_nothing(tmp_path):
    path = write_film(tmp_path / "a.mp4", frames=40, options={"bf": "2", "preset": "medium"})
    one, three = list(read_frames(path)), list(read_frames(path, threads=3))
    assert [frame.pts for frame in one] == [frame.pts for frame in three]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_keeps_its_times(tmp_path, suffix):
    times = [0.0, 0.1, 0.5, 0.6, 2.0, 2.1]
    path = write_film(tmp_path / f"vfr.{suffix}", frames=6, times=times)
    assert [frame.pts for frame in read_frames(path)] == pytest.approx(times, abs=2e-3)


def test_times_count_from_the_start_of_the_stream(tmp_path):
    path = write_film(tmp_path / "late.mkv", frames=5, times=[3 + i / 10 for i in range(5)], sound=clicks(4, [3.2]))
    assert probe(path).duration == pytest.approx(0.44, abs=0.01)
    assert np.abs(read_audio(path, 0, 0.5)[0]).argmax() / 48000 == pytest.approx(0.2, abs=3e-3)
    assert [frame.pts for frame in read_frames(path)] == pytest.approx([i / 10 for i in range(5)], abs=2e-3)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_films_come_upright(tmp_path, rotation):
    path = write_film(tmp_path / "turned.mp4", frames=2, rotation=rotation)
    upright = np.rot90(numbered(0, 160, 96), rotation // 90)
    info, image = probe(path), next(read_frames(path)).image
    assert info.rotation == rotation
    assert (info.height, info.width) == image.shape[:2] == upright.shape[:2]
    assert np.abs(image.astype(int) - upright).mean() < 4
    _, _, raw = next(decode(path))
    assert (raw.height, raw.width) == upright.shape[:2]


def test_wide_pixels_are_shown_square(tmp_path):
    path = tmp_path / "dvd.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 180, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(32, 27)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(0, 180, 120), format="rgb24")))
        container.mux(stream.encode(None))
    assert (probe(path).width, probe(path).height) == (213, 120)
    assert next(read_frames(path)).image.shape == (120, 213, 3)


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("none.mp4", None, "no such file"),
        ("empty.mp4", lambda path: path.write_bytes(b""), "empty"),
        ("notes.txt", lambda path: path.write_text("hello " * 500), "not a film"),
        ("notes.mp4", lambda path: path.write_text("hello " * 500), "not a film"),
        ("list.mp4", lambda path: path.write_text("#EXTM3U\n#EXTINF:9,\n/etc/passwd\n"), "not a film"),
        ("concat.mp4", lambda path: path.write_text("ffconcat version 1.0\nfile /etc/passwd\n"), "not a film"),
        ("folder.mp4", lambda path: path.mkdir(), "directory"),
    ],
)
def test_what_is_no_film_is_refused_in_one_line(tmp_path, name, make, says):
    path = tmp_path / name
    if make:
        make(path)
    for read in (probe, lambda p: next(decode(p)), lambda p: read_audio(p, 0, 1)):
        with pytest.raises(DataError, match=says) as error:
            read(path)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_a_sound_file_is_refused(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="no video stream"):
        probe(path)


def test_a_download_cut_off_before_its_index_is_refused(tmp_path):
    film = write_film(tmp_path / "a.mp4", frames=20)
    with pytest.raises(DataError, match="cut off before its index"):
        probe(without_index(film, tmp_path / "cut.mp4"))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_truncated_film_gives_its_frames_and_then_says_where_it_ends(tmp_path, suffix):
    film = write_film(tmp_path / f"a.{suffix}", frames=120)
    seen = []
    frames = read_frames(truncate(film, tmp_path / f"half.{suffix}", 0.5))
    with pytest.raises(DataError, match=r"truncated: .* declares 5\.0\d s .* ends at \d\.\d\d s"):
        seen.extend(read_number(frame.image) for frame in frames)
    assert 20 < len(seen) < 100
    assert seen[:20] == list(range(20))


def test_a_film_damaged_in_the_middle_is_refused_and_says_from_where(tmp_path):
    film = write_film(tmp_path / "a.mp4", frames=120)
    with pytest.raises(DataError, match=r"damaged: \d+ of \d+ packets .* first at frame \d+"):
        numbers(corrupt(film, tmp_path / "bad.mp4", 0.4, 0.6))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aac.mp4", {}),
        ("flac.mkv", {"sound_codec": "flac", "sound_rate": 44100}),
        ("opus.webm", {"codec": "libvpx", "sound_codec": "libopus"}),
    ],
)
def test_sound_lies_where_its_time_stamps_say(tmp_path, name, options):
    rate = options.get("sound_rate", 48000)
    path = write_film(tmp_path / name, frames=96, sound=clicks(4, [0.5, 1.25, 2.0, 3.1], rate=rate), **options)
    for start, end in ((0.0, 4.0), (1.0, 3.5), (1.9, 2.1)):
        samples = read_audio(path, start, end)
        assert samples.shape == (2, round(end * 48000) - round(start * 48000))
        assert samples.dtype == np.float32
        loud = np.flatnonzero(np.abs(samples[0]) > 0.3) / 48000 + start
        for time in (0.5, 1.25, 2.0, 3.1):
            if start < time < end - 0.1:
                assert np.abs(loud - time).min() < 2e-3
                assert not ((loud > time - 0.05) & (loud < time - 2e-3)).any()


def test_adjacent_stretches_of_sound_join_without_a_seam(tmp_path):
    path = write_film(tmp_path / "a.mp4", frames=72, sound=tone(3))
    whole = read_audio(path, 0, 3)
    parts = [read_audio(path, a, b) for a, b in ((0, 0.7), (0.7, 1.001), (1.001, 2.3333), (2.3333, 3))]
    assert np.abs(np.concatenate(parts, axis=1) - whole).max() < 1e-3


def test_missing_sound_is_silence(tmp_path):
    silent = write_film(tmp_path / "silent.mp4", frames=24)
    assert not read_audio(silent, 0, 1).any()
    short = read_audio(write_film(tmp_path / "short.mp4", frames=48, sound=tone(1)), 0.5, 2)
    assert np.abs(short[:, :20000]).max() > 0.3
    assert not short[:, 30000:].any()
    late = read_audio(write_film(tmp_path / "x.mp4", frames=48, sound=tone(2)), 5, 6)
    assert late.shape == (2, 48000)
    assert not late.any()


def test_rate_and_channels_are_converted(tmp_path):
    path = write_film(tmp_path / "a.mp4", frames=24, sound=tone(1, channels=1, hertz=1000))
    samples = read_audio(path, 0.2, 0.8, rate=16000, channels=2)
    assert samples.shape == (2, 9600)
    assert np.allclose(samples[0], samples[1])
    assert np.abs(np.fft.rfft(samples[0])).argmax() == 600
    with pytest.raises(ValueError, match="channels"):
        read_audio(path, 0, 1, channels=6)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((1280, 720), (854, 480)), ((1080, 1920), (480, 854)), ((853, 479), (852, 478)), ((320, 180), (320, 180))],
)
def test_short_side_examples(size, fitted):
    assert fit_short_side(*size, 480) == fitted


@given(st.integers(2, 8000), st.integers(2, 8000), st.integers(2, 2000))
def test_fitted_sizes_are_even_never_larger_and_keep_the_aspect(width, height, short_side):
    w, h = fit_short_side(width, height, short_side)
    assert w % 2 == 0
    assert h % 2 == 0
    assert w <= width
    assert h <= height
    assert min(w, h) <= short_side + 1
    scale = min(1, short_side / min(width, height))
    assert abs(w - width * scale) <= 2
    assert abs(h - height * scale) <= 2


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.002, 1.5), min_size=1, max_size=12))
def test_times_rise_whatever_the_gaps(tmp_path_factory, gaps):
    times = np.r_[0, np.cumsum(gaps)]
    path = write_film(
        tmp_path_factory.mktemp("gaps") / "a.mkv", size=(32, 32), frames=len(times), times=list(times), options={"bf": "0"}
    )
    read = [time for _, time, _ in decode(path)]
    assert read == pytest.approx(list(times), abs=2e-3)
    assert all(b > a for a, b in itertools.pairwise(read))


def test_the_scaler_takes_films_of_any_size(tmp_path):
    scaler = RgbScaler((40, 24))
    for name, size in (("a.mp4", (160, 96)), ("b.mp4", (20, 12))):
        _, _, frame = next(decode(write_film(tmp_path / name, size=size, frames=1)))
        assert scaler(frame).shape == (24, 40, 3)
