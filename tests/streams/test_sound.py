import io
from fractions import Fraction

import av
import films
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import encode

from animeshooter_dataset import DataError
from streams.clips import ClipSpec
from streams.sound import SoundSpec, choose_frames, decode_frames, decode_sound, frame_times

RATE = 48000


def flac(sound, rate=RATE):
    """float32 [channels, samples] as a flac file of 16 bits, and the columns of the index that tell of it."""
    file, layout = io.BytesIO(), "mono" if len(sound) == 1 else "stereo"
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout=layout)
        stream.codec_context.format = "s16"
        packed = (np.clip(sound, -1, 1) * 32767).round().astype(np.int16).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue(), {"samples": sound.shape[1], "sample_rate": rate, "channels": len(sound)}


def begins(sound, rate, gap=0.1):
    """Seconds at which sounds begin."""
    loud = np.flatnonzero(np.abs(sound) > 0.3)
    return loud[np.diff(loud, prepend=-rate) > gap * rate] / rate


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("start", [0.0, 0.7, 1.23456])
def test_sounds_are_where_they_were_at_any_rate(rate, channels, start):
    blob, row = flac(films.clicks(4, [0, 1, 1.5, 2.25, 3]))
    waveform, mask = decode_sound(blob, row, SoundSpec(2.5, rate, channels), start, "here")
    assert waveform.shape == (channels, round(2.5 * rate))
    assert waveform.dtype == np.float32
    expected = [time - start for time in (0, 1, 1.5, 2.25, 3) if start <= time < start + 2.5]
    assert begins(waveform[0], rate) == pytest.approx(expected, abs=1.5 / rate)
    assert mask.sum() == min(len(mask), round((4 - start) * rate))


@pytest.mark.parametrize("rate", [16000, 44100, 22050])
def test_a_stretch_is_what_it_is_in_the_whole(rate):
    blob, row = flac(0.4 * np.random.default_rng(1).standard_normal((2, 4 * RATE)).clip(-2, 2).astype(np.float32))
    whole, _ = decode_sound(blob, row, SoundSpec(4, rate, 2), 0, "here")
    for start in (0.5, 1.7, 2.99):
        part, _ = decode_sound(blob, row, SoundSpec(1, rate, 2), start, "here")
        assert np.abs(part - whole[:, round(start * rate) :][:, :rate]).max() < 1e-3


def test_without_resampling_samples_are_the_stored_ones():
    stored = np.random.default_rng(0).uniform(-1, 1, (2, RATE)).astype(np.float32)
    blob, row = flac(stored)
    waveform, mask = decode_sound(blob, row, SoundSpec(0.5, RATE, 2), 0.25, "here")
    assert np.abs(waveform - stored[:, RATE // 4 : RATE // 4 * 3]).max() < 2e-4
    assert mask.all()


def test_one_channel_is_the_mean_of_two_and_two_are_one_twice():
    stored = np.stack([films.tone(1)[0], -0.2 * films.tone(1)[0]])
    mono, _ = decode_sound(*flac(stored), SoundSpec(1, RATE, 1), 0, "here")
    assert mono[0] == pytest.approx(stored.mean(axis=0), abs=1e-3)
    both, _ = decode_sound(*flac(stored[:1]), SoundSpec(1, RATE, 2), 0, "here")
    assert (both[0] == both[1]).all()
    assert both[0] == pytest.approx(stored[0], abs=1e-3)


def test_what_is_behind_the_end_is_zero_and_masked():
    waveform, mask = decode_sound(*flac(films.tone(1)), SoundSpec(2, 16000, 1), 0.25, "here")
    assert mask.sum() == 12000
    assert (np.diff(mask.astype(int)) <= 0).all()
    assert (waveform[:, 12000:] == 0).all()
    assert np.abs(waveform[:, 11000:12000]).max() > 0.3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_cut_flac_is_one_line(share):
    blob, row = flac(films.clicks(4, np.arange(0, 4, 0.01)))
    with pytest.raises(
        DataError, match=r"^here: its flac (does not decode|decodes to \d+ samples, the index says 192000)"
    ) as error:
        decode_sound(blob[: int(len(blob) * share)], row, SoundSpec(4), 0, "here")
    assert "\n" not in str(error.value)


def test_a_flipped_byte_is_an_error_or_lies_behind_what_is_wanted():
    blob, row = flac(np.random.default_rng(0).uniform(-1, 1, (1, 2 * RATE)).astype(np.float32))
    whole, refused = decode_sound(blob, row, SoundSpec(0.5), 0, "here")[0], 0
    for place in range(8300, len(blob), 4001):  # before that lies room for tags
        bad = bytearray(blob)
        bad[place] ^= 4
        try:
            assert (decode_sound(bytes(bad), row, SoundSpec(0.5), 0, "here")[0] == whole).all()
        except DataError:
            refused += 1
    assert refused > 5


def test_a_flac_of_another_rate_than_the_index_says_is_named():
    blob, row = flac(films.tone(1))
    with pytest.raises(DataError, match="here: its flac has 48000 Hz in 2 channels, the index says 44100 Hz in 2"):
        decode_sound(blob, row | {"sample_rate": 44100}, SoundSpec(1), 0, "here")


@pytest.mark.parametrize("values", [{"seconds": 0}, {"seconds": 1, "rate": 0}, {"seconds": float("nan")}])
def test_lengths_and_rates_are_positive(values):
    with pytest.raises(DataError, match="must be positive"):
        SoundSpec(**values)
    with pytest.raises(DataError, match="channels must be 1 or 2, not 6"):
        SoundSpec(1, channels=6)


@given(
    gaps=st.lists(st.integers(10, 900), min_size=1, max_size=60),
    frames=st.sampled_from([1, 5, 9, 13]),
    fps=st.sampled_from([4, 8, 12.5]),
    length=st.floats(0.1, 20),
    at=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_frames_keep_the_time_of_the_sound(gaps, frames, fps, length, at):
    times, seconds, clip = np.cumsum([0, *gaps[:-1]]) / 1000, sum(gaps) / 1000, ClipSpec(frames, 8, 8, fps)
    span = (frames - 1) / fps
    if span > seconds:
        return  # such clips are left out
    chosen = choose_frames(times, seconds, clip, length, at)
    begin = times[chosen.frames[0]]
    until = np.append(times[1:], np.inf)[chosen.frames[0]]
    held = times[-1] < span
    room = max(0.0, min((seconds if held else times[-1]) - span, seconds - length))
    start = room * at
    assert begin <= start + 1e-5 < until + 1e-5
    for frame, due in zip(chosen.frames, start + np.arange(frames) / fps):  # each is on screen when it is due
        assert times[frame] <= due + 1e-5
        assert frame == len(times) - 1 or due < times[frame + 1] + 1e-5
    assert start + min(length, seconds) <= seconds + 1e-6 or start == 0  # no sound is lost for nothing


@pytest.mark.parametrize(("seconds", "length", "held"), [(2.0, 0.5, False), (1.4, 1.0, True)])
def test_chosen_frames_are_the_ones_decoded(seconds, length, held):
    times = [0, 50, 100, 400, 450, 600, 800, 1000] if held else [0, 50, 100, 400, 450, 600, 1000, 1900]
    grey = np.repeat(np.arange(8)[:, None, None, None] * 30, 72, 1).repeat(128, 2).repeat(3, 3).astype(np.uint8)
    blob, clip = encode(grey, times), ClipSpec(5, 36, 64, 4 if not held else 3)
    shown = frame_times(blob, 8, "here")
    assert shown == pytest.approx(np.array(times) / 1000, abs=1e-4)
    for at in (0, 0.3, 0.9):
        chosen = choose_frames(shown, seconds, clip, length, at)
        assert (chosen.share is None) == held
        frames = decode_frames(blob, shown, chosen, clip, "here", None)
        assert frames.shape == (5, 36, 64, 3)
        assert frames.mean((1, 2, 3)) / 30 == pytest.approx(chosen.frames, abs=0.2)


def test_a_clip_of_another_number_of_frames_is_named():
    blob = encode(np.zeros((5, 72, 128, 3), np.uint8))
    with pytest.raises(DataError, match="here: the clip has 5 frames, the index says 6"):
        frame_times(blob, 6, "here")
    with pytest.raises(DataError, match="here: the clip does not open"):
        frame_times(b"no film" * 99, 6, "here")
