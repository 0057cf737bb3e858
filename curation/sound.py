"""What a film sounds like: speech, music, silence, loudness, peaks and clipping of any stretch of it.

The sound is read once, in pieces, so that memory does not grow with the film; what stays are envelopes on three grids
(10 ms, 100 ms, 1 s), from which every stretch is answered. A stretch owns the steps whose middle lies in it. Sound is read
at its own rate and as mono or stereo (more channels are mixed down by FFmpeg's rules, as the stored clips are).

* **Speech**: silero-vad at 16 kHz. Mumbled words without meaning count, single cries, laughs and animal voices hardly ever;
  words under loud music are missed in part.
* **Music**: a declared measure without a model, continuous frequency activation (Seyerlehner, Pohle, Schedl and Widmer, 2007,
  "Automatic music detection in television productions"): spectral peaks that stand still for longer than speech or effects let
  them. It finds notes that are held, also under speech. It cannot tell music from other sounds with several steady tones (a
  horn, a siren, a humming engine, long held voices, singing without instruments), and it misses music without steady pitch
  (drums alone, very quiet or sparse notes, glides). Of made-up soundscapes, which helped to choose the limit, it takes 99 % of
  the seconds with a tune and 3 % of the others for music, most of these where voices and bells follow each other.
* **Loudness**: FFmpeg's ``ebur128`` filter gives the loudness of every 400 ms block at steps of 100 ms (ITU-R BS.1770-4,
  annex 1); the two gates are applied here to the blocks that lie inside a stretch.
* **Peak and clipping**: of samples, not of the signal between them; a run of three or more samples at full scale is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import av
import numpy as np

from animeshooter_dataset import SoundScores
from curation.collect import Film
from curation.meters import BANDS, BLOCK, FLOOR, RATE, STEP, Ear, Loudness, Voice, lasting, levels, runs, sound_frame
from curation.video import read_audio

PIECE, SLICE = 60.0, 10
"""Seconds read at a time, and of these measured at a time: whole steps of every grid."""
CHANGE_REACH = 2.0
"""Seconds compared on either side of a change in sound."""


@dataclass(frozen=True)
class SoundConfig:
    """Settings of the measures.

    Attributes:
        silence_level: level in dBFS below which it is silent (FFmpeg's silencedetect has the same default).
        speech_probability: silero-vad's probability from which a voice speaks (its authors' default).
        speech_seconds: shorter speech does not count (its authors' default).
        music_activation: continuous frequency activation from which a second is music, of 0 to 5 (five bars that never stop).
        music_seconds: shorter music does not count.
    """

    silence_level: float = -60.0
    speech_probability: float = 0.5
    speech_seconds: float = 0.25
    music_activation: float = 1.5
    music_seconds: float = 3.0


@dataclass(frozen=True)
class FilmSound:
    """Envelopes of a film's sound; arrays are empty without sound.

    Attributes:
        duration: seconds heard, from the film's first picture.
        silence_level: level in dBFS below which it is silent.
        level: RMS in dBFS of every 10 ms, float16.
        peak: highest sample in dBFS of every 10 ms, float16.
        clipped: share of samples in runs at full scale of every 10 ms, float16.
        onset: mean rise of the bands in dB of every 10 ms, float16.
        momentary: loudness in LUFS of the 400 ms that end with every 100 ms, float32.
        bands: level in dB of each band of every 100 ms, float16 [n, bands].
        tonality: how much power stands in narrow peaks, of every 100 ms, float16: about 2 for noise, 5 and more for tones.
        activation: continuous frequency activation of every second, float16.
        music: whether every second is music, bool.
        speech: stretches of speech, seconds, float64 [n, 2], ascending.
    """

    duration: float
    silence_level: float
    level: np.ndarray
    peak: np.ndarray
    clipped: np.ndarray
    onset: np.ndarray
    momentary: np.ndarray
    bands: np.ndarray
    tonality: np.ndarray
    activation: np.ndarray
    music: np.ndarray
    speech: np.ndarray

    @property
    def has_sound(self) -> bool:
        """Whether the film has a sound stream."""
        return bool(self.level.size)

    def scores(self, start: float, end: float) -> SoundScores:
        """Measures of a stretch; what lies beyond the sound that was heard does not count.

        Args:
            start: seconds of the picture clock.
            end: the same.
        """
        fine, end = steps(start, min(end, self.duration), STEP, self.level.size), min(end, self.duration)
        if fine.stop <= fine.start:
            return SoundScores()
        peak = float(self.peak[fine].max())
        return SoundScores(
            speech=_share(self.speech, start, end),
            music=_share(runs(self.music).astype(np.float64), start, end),
            silence=round(float((self.level[fine] < self.silence_level).mean()), 4),
            loudness=self.loudness(start, end),
            peak=round(min(peak, 0.0), 2) if peak > FLOOR else None,
            clipping=round(float(self.clipped[fine].astype(np.float64).mean()), 6),
        )

    def loudness(self, start: float, end: float) -> float | None:
        """Integrated loudness in LUFS of the 400 ms blocks inside a stretch, gated at -70 LUFS and 10 LU below the mean."""
        first = int(np.ceil(start / BLOCK - 1e-6)) + 3  # a block's entry stands at its last 100 ms
        blocks = self.momentary[first : int(np.floor(end / BLOCK + 1e-6))].astype(np.float64)
        blocks = blocks[blocks > -70.0]
        if not blocks.size:
            return None
        power = 10 ** (blocks / 10)
        power = power[blocks > 10 * np.log10(power.mean()) - 10.0]
        return round(float(10 * np.log10(power.mean())), 2)

    def onsets(self, start: float, end: float, *, rise: float = 3.0) -> np.ndarray:
        """Times in seconds at which something begins to sound.

        They are peaks of the bands' mean rise, at least ``rise`` dB over their surroundings and 120 ms apart, that are louder
        than the silence level. On rendered films 4 of 5 known events are found, and every second one found is a known event:
        notes and the grains of rain and fire begin too.
        """
        wanted = steps(start, end, STEP, self.onset.size)
        before = max(0, wanted.start - 50)
        strength = self.onset[before : wanted.stop + 50].astype(np.float64)
        if strength.size < 3:
            return np.empty(0)
        usual = np.convolve(np.pad(strength, 25, mode="edge"), np.ones(51) / 51, "valid")
        loud = self.level[before : wanted.stop + 50].astype(np.float64) > self.silence_level
        excess = np.where(loud, strength - usual, 0.0)
        found, near = [], np.zeros(excess.size + 12, bool)
        for place in np.argsort(-excess, kind="stable"):
            if excess[place] < rise:
                break
            if not near[place]:
                found.append(before + int(place))
                near[max(0, place - 11) : place + 12] = True
        return np.array([place for place in sorted(found) if wanted.start <= place < wanted.stop]) * STEP

    def change(self, time: float, *, within: tuple[float, float] | None = None) -> float:
        """How much what sounds all along differs after a time from before it, in dB: a bed that begins, ends or changes.

        Of the two seconds on either side the quietest fifth of every band is compared, so that single events do not count;
        what is below the silence level counts as that. On rendered films the median is 7 dB where a bed changes, 2.5 dB at
        other cuts.

        Args:
            time: seconds.
            within: stretch that is not left on either side.
        """
        low, high = within or (0.0, self.duration)
        before = self.bands[steps(max(low, time - CHANGE_REACH), time, BLOCK, len(self.bands))]
        after = self.bands[steps(time, min(high, time + CHANGE_REACH), BLOCK, len(self.bands))]
        if not len(before) or not len(after):
            return 0.0
        heard = [np.maximum(part.astype(np.float64), self.silence_level) for part in (before, after)]
        lasting = [np.quantile(part, 0.2, axis=0) for part in heard]
        return float(np.abs(lasting[1] - lasting[0]).mean())

    def save(self, path: Path) -> None:
        """Write a .npz; equal envelopes give equal bytes."""
        arrays: dict[str, Any] = {each.name: np.asarray(getattr(self, each.name)) for each in fields(self)}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> FilmSound:
        """Read back what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        duration, silence_level = (float(arrays.pop(name)) for name in ("duration", "silence_level"))
        return cls(duration, silence_level, **arrays)


def hear(film: Film, config: SoundConfig | None = None) -> FilmSound:
    """Listen to a film once, as long as its pictures last.

    Raises:
        DataError: the film cannot be opened.
    """
    config = config or SoundConfig()
    duration = film.info.duration
    if not film.info.has_audio or duration < STEP:
        return _silent(config)
    rate, channels = film.info.audio_rate or 48_000, 1 if film.info.audio_channels == 1 else 2
    loudness, ear, voice = Loudness(rate, channels), Ear(), Voice()
    mono = av.AudioResampler(format="fltp", layout="mono", rate=RATE)

    def pass_on(frame: av.AudioFrame | None) -> None:
        for piece in mono.resample(frame):
            heard = piece.to_ndarray()[0]
            ear.add(heard)
            voice.add(heard)

    parts: dict[str, list[np.ndarray]] = {"level": [], "peak": [], "clipped": []}
    for first in np.arange(0.0, duration, PIECE):
        samples = read_audio(film.path, first, min(first + PIECE, duration), rate=rate, channels=channels)
        for begin in range(0, samples.shape[1], SLICE * rate):
            part = samples[:, begin : begin + SLICE * rate]
            for name, values in levels(part, rate).items():
                parts[name].append(values)
            loudness.add(part)
            pass_on(sound_frame(part, rate))
    pass_on(None)
    envelopes = {name: np.concatenate(values) for name, values in parts.items()}
    spectra = ear.finish(duration, config.silence_level)
    return FilmSound(
        duration=duration,
        silence_level=config.silence_level,
        **envelopes,
        **spectra,
        momentary=loudness.finish(),
        music=lasting(
            spectra["activation"] > config.music_activation, envelopes["level"] >= config.silence_level, config.music_seconds
        ),
        speech=voice.finish(duration, config.speech_probability, config.speech_seconds),
    )


def _silent(config: SoundConfig) -> FilmSound:
    none, half = np.zeros(0, np.float32), np.zeros(0, np.float16)
    bands = np.zeros((0, len(BANDS) - 1), np.float16)
    flags, spans = np.zeros(0, bool), np.zeros((0, 2))
    return FilmSound(0.0, config.silence_level, half, half, half, half, none, bands, half, half, flags, spans)


def steps(start: float, end: float, step: float, count: int) -> slice:
    """The steps of a grid whose middle lies in [start, end)."""
    first, last = (int(np.ceil(edge / step - 0.5 - 1e-6)) for edge in (start, end))
    return slice(min(max(first, 0), count), min(max(last, 0), count))


def _share(spans: np.ndarray, start: float, end: float) -> float:
    """Share of [start, end) that disjoint spans cover."""
    inside = np.clip(np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], start), 0, None).sum()
    return round(float(inside / (end - start)), 4) if end > start else 0.0
