import io
import tempfile
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from animeshooter_dataset import DataError, Reference
from streams.clips import ClipSpec, _wanted_frames, cut_reference, decode_clip, sample_times, shared_frames

LAYOUTS = {
    "as built": {"g": "12"},
    "no B-frames": {"g": "7", "bf": "0"},
    "many B-frames": {"g": "14", "bf": "8", "b_strategy": "0", "refs": "4"},
    "B-frames refer to no B": {"g": "11", "bf": "3", "b_strategy": "0", "b-pyramid": "none"},
    "open groups": {"g": "8", "bf": "3", "b_strategy": "0", "x264-params": "open-gop=1"},
    "key frames only": {"g": "1"},
    "intra refresh": {"g": "10", "intra-refresh": "1"},
    "fastdecode": {"g": "12", "tune": "fastdecode"},
}


@lru_cache
def clip_of(layout="as built", count=30, size=(96, 64), rate="steady", sound=False, last_key=True):
    """A clip of moving noise over a gradient, in which no two frames are alike, as mp4 bytes."""
    width, height = size
    draw = np.random.default_rng(count)
    noise = draw.integers(0, 80, (height, width + count, 3), np.uint8)
    ticks = np.arange(count) * 3750 if rate == "steady" else np.cumsum(draw.integers(900, 9000, count))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        _write_clip(path, layout, noise, ticks, size, sound, last_key)
        return path.read_bytes()


def _write_clip(path, layout, noise, ticks, size, sound, last_key):
    width, height = size
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = width, height, "yuv444p" if width % 2 or height % 2 else "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 90_000)
        video.codec_context.thread_count = 1
        video.options = {"crf": "23", "preset": "veryfast", **LAYOUTS[layout]}
        if sound:
            voice = container.add_stream("aac", rate=48_000, layout="stereo")
            hum = av.AudioFrame.from_ndarray(np.zeros((2, 48_000), np.float32), format="fltp", layout="stereo")
            hum.sample_rate = 48_000
            container.mux(voice.encode(hum))
            container.mux(voice.encode(None))
        for number, tick in enumerate(ticks):
            image = noise[:, number : number + width] + np.uint8(4 * number % 160)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = int(tick - ticks[0]), Fraction(1, 90_000)
            if last_key and number == len(ticks) - 1:
                frame.pict_type = av.video.frame.PictureType.I
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def row_of(count=30, clean_start=0, clean_end=None):
    return {"frames": count, "clean_start": clean_start, "clean_end": count if clean_end is None else clean_end}


def plainly(clip, row, spec, at, picture=None):
    """The same by a plain loop: decode all, scale what is wanted with a scaler of its own."""
    with av.open(io.BytesIO(clip)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = sorted(container.decode(container.streams.video[0]), key=lambda frame: frame.pts)
        frames = frames[row["clean_start"] : row["clean_end"]]
        chosen = sample_times(np.array([float(frame.pts * frame.time_base) for frame in frames]), spec, at)

        def image(frame):
            left, top, right, bottom = picture or (0, 0, frame.width, frame.height)
            scale = max(spec.height / (bottom - top), spec.width / (right - left))
            tall, wide = max(spec.height, round(frame.height * scale)), max(spec.width, round(frame.width * scale))
            how = "AREA" if scale < 1 else "BICUBIC"
            pixels = frame.to_ndarray(format="rgb24", width=wide, height=tall, interpolation=how, threads=1)
            if picture is None:
                right, bottom = wide, tall
            else:
                left, top, right, bottom = (round(edge * scale) for edge in picture)
            y = min(max((top + bottom - spec.height) // 2, 0), tall - spec.height)
            x = min(max((left + right - spec.width) // 2, 0), wide - spec.width)
            return pixels[y : y + spec.height, x : x + spec.width]

        return np.stack([image(frames[which]) for which in chosen]), image(frames[0]), image(frames[-1])


def assert_as_plain(clip, row, spec, at, picture=None):
    for mine, plain in zip(decode_clip(clip, row, spec, at, "here", picture), plainly(clip, row, spec, at, picture)):
        assert mine.dtype == np.uint8
        assert np.array_equal(mine, plain)


@settings(deadline=None, max_examples=1500)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    count=st.sampled_from([2, 37]),
    rate=st.sampled_from(["steady", "variable"]),
    last_key=st.booleans(),
    clean=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    spec=st.sampled_from([ClipSpec(5, 32, 48, 8), ClipSpec(9, 64, 96, 24), ClipSpec(1, 80, 100, 4), ClipSpec(17, 48, 48, 30)]),
    at=st.floats(0, 1, exclude_max=True),
)
def test_every_picture_is_that_of_a_plain_decode(layout, count, rate, last_key, clean, spec, at):
    start, end = sorted(int(share * (count - 1)) for share in clean)
    clip = clip_of(layout, count, rate=rate, last_key=last_key)
    assert_as_plain(clip, row_of(count, start, end + 1), spec, at)


@pytest.mark.parametrize("size", [(95, 63), (98, 50), (854, 480)])
@pytest.mark.parametrize("shape", [(64, 96), (33, 47), (120, 90)])
def test_odd_sizes_up_and_down(size, shape):
    assert_as_plain(clip_of(count=6, size=size), row_of(6), ClipSpec(5, *shape, 24), 0.3)


@pytest.mark.parametrize("picture", [(0, 8, 96, 56), (11, 0, 85, 64), (3, 5, 90, 61)])
def test_black_bars_are_cut_as_before(picture):
    assert_as_plain(clip_of(), row_of(30, 2, 28), ClipSpec(5, 40, 60, 8), 0.5, picture)


def test_sound_beside_the_pictures_changes_nothing():
    assert_as_plain(clip_of(sound=True), row_of(), ClipSpec(5, 32, 48, 8), 0.9)


def test_a_clip_of_one_frame_and_a_clean_part_of_one():
    assert_as_plain(clip_of(count=1), row_of(1), ClipSpec(5, 32, 48, 8), 0.0)
    assert_as_plain(clip_of(), row_of(30, 17, 18), ClipSpec(5, 32, 48, 8), 0.0)


def test_it_can_decode_into_arrays_of_the_caller():
    spec = ClipSpec(5, 32, 48, 8)
    batch = shared_frames((2, 5, 32, 48, 3))
    assert batch.is_shared()
    batch.zero_()
    ends = np.empty((2, 32, 48, 3), np.uint8)
    out = (batch[1].numpy(), ends[0], ends[1])
    given_back = decode_clip(clip_of(), row_of(), spec, 0.4, "here", out=out)
    assert all(one is other for one, other in zip(given_back, out))
    for mine, plain in zip((batch[1].numpy(), *ends), plainly(clip_of(), row_of(), spec, 0.4)):
        assert np.array_equal(mine, plain)
    assert not batch[0].any()


class CountingCodec:
    """A codec that counts the packets sent to it."""

    def __init__(self, codec):
        self.__dict__.update(codec=codec, sent=0)

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def __setattr__(self, name, value):
        setattr(self.codec, name, value)

    def decode(self, packet):
        self.__dict__["sent"] += packet is not None
        return self.codec.decode(packet)


def test_a_short_window_does_not_cost_the_whole_clip():
    with av.open(io.BytesIO(clip_of(count=121))) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        ticks = sorted(packet.pts for packet in packets)
        codec = CountingCodec(stream.codec_context)
        wanted = {ticks[0], ticks[60], ticks[61], ticks[-1]}
        assert {frame.pts for frame in _wanted_frames(codec, packets, wanted)} == wanted
    assert codec.sent <= 1 + 12 + 1 + 1  # first, one group up to the window, last; the last is a key frame


# ---- what can be wrong ----


def test_the_number_of_frames_must_be_that_of_the_index():
    with pytest.raises(DataError, match="shard: key: the clip has 30 frames, the index says 31"):
        decode_clip(clip_of(), row_of(31), ClipSpec(5, 32, 48, 8), 0.0, "shard: key")


@pytest.mark.parametrize("keep", [0, 1 / 100_000, 1 / 100, 0.5, 0.9, 0.99999])
def test_a_truncated_clip_names_shard_and_key(keep):
    clip = clip_of(count=61)
    clip = clip[: int(keep * len(clip))]
    with pytest.raises(DataError, match=r"^shard: key: .*(does not decode|do not decode|the index says).*"):
        decode_clip(clip, row_of(61), ClipSpec(61, 32, 48, 24), 0.0, "shard: key")


def test_a_torn_picture_is_an_error_and_not_a_patched_up_frame():
    clip = bytearray(clip_of(count=61))
    begin = clip.index(b"mdat") + 2_000
    clip[begin : begin + 3_000] = bytes(3_000)
    with pytest.raises(DataError, match=r"^shard: key: "):
        decode_clip(bytes(clip), row_of(61), ClipSpec(61, 32, 48, 24), 0.0, "shard: key")


@settings(deadline=None, max_examples=150)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_of_the_data_or_goes_unseen(where, bit):
    clip = bytearray(clip_of())
    clip[int(where * len(clip))] ^= 1 << bit
    spec = ClipSpec(29, 32, 48, 24)
    said = ""
    try:
        frames, first, last = decode_clip(bytes(clip), row_of(), spec, 0.0, "shard: key")
    except DataError as error:
        said = str(error)
    if said:
        assert said.startswith("shard: key: ")
        assert "\n" not in said
    else:
        assert frames.shape == (29, 32, 48, 3)
        assert first.shape == last.shape == (32, 48, 3)


def test_after_a_damaged_clip_the_next_one_decodes_as_ever():
    spec = ClipSpec(5, 32, 48, 8)
    before = decode_clip(clip_of(), row_of(), spec, 0.2, "here")
    with pytest.raises(DataError):
        decode_clip(clip_of()[:-2_000], row_of(), spec, 0.99, "here")
    for one, other in zip(before, decode_clip(clip_of(), row_of(), spec, 0.2, "here")):
        assert np.array_equal(one, other)


def sheet_of(width=40, height=20):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return pixels, file.getvalue()


def reference_of(box):
    return Reference(character="Red", box=box, shot="s0-1", frame=3, source_box=(0, 0, 9, 9))


def test_a_reference_is_its_box_of_the_sheet_on_white():
    pixels, sheet = sheet_of()
    image = np.asarray(cut_reference(sheet, reference_of((3, 2, 13, 18)), "here")).astype(float)
    cut = pixels[2:18, 3:13].astype(float)
    share = cut[..., 3:] / 255
    assert np.abs(image - (cut[..., :3] * share + 255 * (1 - share))).max() <= 1


@settings(deadline=None, max_examples=200)
@given(where=st.integers(0, 400), bit=st.integers(0, 7), keep=st.sampled_from([1.0, 1.0, 0.5]))
def test_a_damaged_sheet_is_an_error_of_the_data_or_goes_unseen(where, bit, keep):
    damaged = bytearray(sheet_of()[1])
    damaged[where] ^= 1 << bit
    try:
        image = cut_reference(bytes(damaged[: int(keep * len(damaged))]), reference_of((3, 2, 13, 18)), "shard: key")
    except DataError as error:
        image = None
        said = str(error)
    assert image.size == (10, 16) if image else said.startswith("shard: key: ")


@pytest.mark.parametrize("box", [(0, 0, 41, 20), (5, 5, 5, 9), (-1, 0, 4, 4)])
def test_a_box_outside_the_sheet_is_refused(box):
    with pytest.raises(DataError, match=r"shard: key: reference box .* outside the sheet"):
        cut_reference(sheet_of()[1], reference_of(box), "shard: key")


@pytest.mark.parametrize("starts", [0, -1])
def test_fixed_starts_are_at_least_one(starts):
    with pytest.raises(DataError, match="starts must be at least 1"):
        ClipSpec(5, 32, 48, 8, starts=starts)
