import itertools
import zipfile
from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest
from av.stream import Disposition
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
        ("ten_bit_hevc.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
        ("av1.mkv", {"codec": "libsvtav1", "options": {"preset": "12", "crf": "10"}}),
        ("ten_bit_av1.mp4", {"codec": "libsvtav1", "pix_fmt": "yuv420p10le", "options": {"preset": "12", "crf": "10"}}),
        ("broadcast.ts", {"options": {"bf": "2", "preset": "medium"}}),
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


def write_tracks(path, *, picture=0, sound=0.0, sound_from=0.0, cover=False):
    """A film of ``picture`` frames and ``sound`` seconds of a tone that begins late, with a cover as music files have one."""
    with av.open(str(path), "w") as container:
        streams = []
        if cover:
            art = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt, art.disposition = 320, 320, "yuvj420p", Disposition.attached_pic
            shown = av.VideoFrame.from_ndarray(np.full((320, 320, 3), 90, np.uint8), format="rgb24").reformat(format="yuvj420p")
            shown.pts = 0
            streams.append((art, [shown]))
        if picture:
            video = container.add_stream("libx264", rate=24, options={"preset": "ultrafast", "crf": "12"})
            video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
            frames = [av.VideoFrame.from_ndarray(numbered(index, 160, 96), format="rgb24") for index in range(picture)]
            for index, frame in enumerate(frames):
                frame.pts = index
            streams.append((video, frames))
        if sound:
            voice = container.add_stream("aac", rate=48000, layout="stereo")
            frames = []
            for first in range(0, round(sound * 48000), 1000):
                block = np.ascontiguousarray(tone(sound)[:, first : first + 1000])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), first + round(sound_from * 48000)
                frames.append(frame)
            streams.append((voice, frames))
        packets = [[packet for frame in [*frames, None] for packet in stream.encode(frame)] for stream, frames in streams]
        for packet in itertools.chain.from_iterable(packets):
            container.mux(packet)
    return path


def test_a_song_with_a_picture_on_its_sleeve_is_no_film(tmp_path):
    with pytest.raises(DataError, match="no video stream; name a film, not a sound file"):
        probe(write_tracks(tmp_path / "song.mp4", sound=1.0, cover=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cover_is_not_taken_for_the_film(tmp_path, suffix):
    path = write_tracks(tmp_path / f"a.{suffix}", picture=10, sound=1.0, cover=True)
    assert (probe(path).width, probe(path).height) == (160, 96)
    assert numbers(path) == list(range(10))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_sound_that_outlasts_the_pictures_does_not_lengthen_the_film(tmp_path, suffix):
    path = write_film(tmp_path / f"a.{suffix}", frames=24, sound=tone(4))
    assert probe(path).duration == pytest.approx(1.0, abs=0.03)
    assert numbers(path) == list(range(24))


def test_sound_that_starts_late_is_silent_until_then(tmp_path):
    samples = read_audio(write_tracks(tmp_path / "a.mp4", picture=48, sound=1.0, sound_from=0.75), 0, 2)
    assert np.abs(samples[:, :35900]).max() < 0.05
    assert np.abs(samples[:, 40000:80000]).max() > 0.4


def test_a_zip_and_an_archive_of_a_film_are_no_films(tmp_path):
    film = write_film(tmp_path / "a.mp4", frames=5)
    with zipfile.ZipFile(tmp_path / "film.mkv", "w") as archive:
        archive.write(film)
    with pytest.raises(DataError, match=r"film.mkv: not a film that can be read"):
        probe(tmp_path / "film.mkv")


def test_the_contents_decide_and_not_the_extension(tmp_path):
    film = write_film(tmp_path / "a.mp4", frames=5).rename(tmp_path / "a.txt")
    assert numbers(film) == list(range(5))


@pytest.mark.parametrize("size", [(35, 23), (2, 2), (1, 1)])
def test_films_of_any_size_are_read(tmp_path, size):
    path = write_film(tmp_path / "a.mkv", size=size, frames=4, codec="ffv1", pix_fmt="yuv444p")
    assert (probe(path).width, probe(path).height) == size
    assert [frame.image.shape for frame in read_frames(path)] == [(size[1], size[0], 3)] * 4


def test_a_container_that_lies_about_the_length_is_found_out(tmp_path):
    film = write_film(tmp_path / "a.mkv", frames=48)
    data = film.read_bytes()
    lie = data.replace(b"00:00:02.000000000", b"01:00:00.000000000", 1)
    assert lie != data
    film.write_bytes(lie)
    with pytest.raises(DataError, match=r"declares 3600\.00 s of film, the last of its 48 .* ends at 2\.00 s"):
        numbers(film)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("film.mp4", {"fps": Fraction(24000, 1001)}),
        ("rounded.mkv", {"fps": Fraction(24000, 1001)}),
        ("fast.mkv", {"fps": 60}),
        ("rounded.flv", {"fps": Fraction(30000, 1001)}),
        ("b_frames.mp4", {"options": {"bf": "3", "preset": "medium"}}),
        ("short.mkv", {"frames": 5}),
        ("one.mp4", {"frames": 1}),
        ("24_in_30.mp4", {"fps": 30, "picture": lambda index, *size: numbered(index * 4 // 5, *size)}),
    ],
)
def test_steady_frame_rates_are_not_called_variable(tmp_path, name, options):
    info = probe(write_film(tmp_path / name, **{"frames": 300, "size": (64, 48), **options}))
    assert not info.variable_frame_rate
    assert not info.interlaced


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rates_are_called_so(tmp_path, suffix):
    held = np.cumsum(np.random.default_rng(0).choice([1, 2, 3], 60)) / 24  # repeated pictures left out
    assert probe(write_film(tmp_path / f"held.{suffix}", frames=60, times=list(held))).variable_frame_rate
    later = [*np.arange(300) / 30, *(10 + np.arange(300) / 12)]  # the first ten seconds are steady
    film = write_film(tmp_path / f"later.{suffix}", size=(64, 48), frames=600, times=later)
    assert probe(film).variable_frame_rate


def moving(field):
    """A bar over stripes that moves by eight pixels a field, RGB uint8 [96, 160, 3]."""
    image = np.full((96, 160, 3), 200, np.uint8)
    image[:, ::16] = 90
    image[:, 8 + 8 * field : 28 + 8 * field] = (30, 40, 120)
    return image


def write_interlaced(path, codec, pictures, **options):
    """A film whose pictures are two fields each, the upper first, as a camera or a broadcast gives them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv444p" if codec == "ffv1" else "yuv420p"
        for index in range(pictures):
            planes = []
            for field in (0, 1):  # each field has colours of its own, which must not be mixed in halving them
                rows = np.ascontiguousarray(moving(2 * index + field)[field::2])
                flat = av.VideoFrame.from_ndarray(rows, format="rgb24").reformat(format=stream.pix_fmt).to_ndarray().reshape(-1)
                lines = [160] * 48 + [80 if codec != "ffv1" else 160] * (48 if codec != "ffv1" else 96)
                planes.append(np.split(flat, np.cumsum(lines)[:-1]))
            woven = np.concatenate([line for pair in zip(*planes) for line in pair])
            shape = (144, 160) if codec != "ffv1" else (3, 96, 160)
            frame = av.VideoFrame.from_ndarray(woven.reshape(shape), format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            graph = av.filter.Graph()
            nodes = [graph.add_buffer(width=160, height=96, format=frame.format, time_base=frame.time_base)]
            graph.link_nodes(*nodes, graph.add("setfield", "tff"), graph.add("buffersink"))
            graph.configure()
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"crf": "4", "flags": "+ildct+ilme", "x264-params": "tff=1"}),
        ("a.ts", "mpeg2video", {"b": "6000k", "flags": "+ildct+ilme"}),
        ("a.mkv", "ffv1", {}),
    ],
)
def test_interlaced_pictures_come_whole_one_for_one(tmp_path, name, codec, options):
    pictures = 12
    path = write_interlaced(tmp_path / name, codec, pictures, **options)
    info = probe(path)
    assert (info.interlaced, info.variable_frame_rate) == (True, False)
    frames = list(read_frames(path))
    assert [frame.index for frame in frames] == list(range(pictures))
    assert [frame.pts for frame in frames] == pytest.approx([index / 25 for index in range(pictures)], abs=2e-3)
    for frame in frames:
        rows = frame.image.astype(int)
        assert np.abs(rows[0::2] - rows[1::2]).max() < 60  # no comb: a bar's edge is a step of 150
        assert np.abs(rows - moving(2 * frame.index)).mean() < 6  # and what is seen is the moment of the first field
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, read_frames(path, threads=3), strict=True))


def test_a_single_interlaced_picture_is_not_lost(tmp_path):
    path = write_interlaced(tmp_path / "a.mp4", "libx264", 1, flags="+ildct+ilme", **{"x264-params": "tff=1"})
    assert [(index, time) for index, time, _ in decode(path)] == [(0, 0.0)]


def test_pictures_of_a_film_that_are_not_interlaced_stay_as_they_are(tmp_path):
    path = write_film(tmp_path / "a.mp4", frames=10)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert all(np.array_equal(frame.to_ndarray(), plain) for (_, _, frame), plain in zip(decode(path), stored, strict=True))


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
