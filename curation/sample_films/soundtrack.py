"""The soundtrack of a film: every cue at its frame, footsteps where feet touch down, beds under the shots, one mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .compositor import action_at, camera_at, place_at
from .rig import CONTACTS
from .sound import AMBIENCE, EFFECTS, INSTRUMENTS, RATE, melody
from .storyboard import FPS, WIDTH, Act, Film, Shot, Timeline


@dataclass(frozen=True)
class Sound:
    """One sound effect of the film, placed in time."""

    start: float  # seconds
    effect: str  # name in `sound.EFFECTS`
    gain: float
    pan: float
    character: str | None


def _contacts(shot: Shot, act: Act, start: float) -> list[Sound]:
    """The sounds an act makes by its own action while it is in the picture."""
    out: list[Sound] = []
    steps = shot.frames // 2
    for i in range(steps):
        t = i * 2 / FPS
        name, since = action_at(act, t)
        if name not in CONTACTS or not act.enter <= t < act.leave:
            continue
        gap, first = CONTACTS[name]
        if int((since - first + 1e-6) / gap) == int((since - 2 / FPS - first + 1e-6) / gap) and since > 1e-6:
            continue
        camera = camera_at(shot, t, 2 * i)
        x, _, _ = place_at(act, t)
        across = (x - camera[0]) * camera[2] / (WIDTH / 2)
        if abs(across) > 1.5:
            continue
        effect = "heavy_step" if act.who == "grum" else shot.steps
        gain = 0.32 * max(0.35, 1.15 - 0.6 * max(abs(across) - 0.4, 0))
        out.append(Sound(start + t, effect, gain, float(np.clip(across, -0.8, 0.8)), act.who))
    return out


def sounds(film: Film, time: Timeline) -> list[Sound]:
    """Every sound effect of the film in time order: the storyboard's cues, and contacts of feet with the ground."""
    tracked = {r.id for r in film.cast}
    out = []
    for shot, first in zip(film.shots, time.starts):
        start = first / FPS
        out += [Sound(start + c.t, c.sound, c.gain, c.pan, c.who) for c in shot.cues]
        for act in shot.acts:
            if act.who in tracked and not act.quiet:
                out += _contacts(shot, act, start)
    return sorted(out, key=lambda s: (s.start, s.effect))


def mix(film: Film, time: Timeline, seed: int) -> tuple[np.ndarray, list[dict]]:
    """The whole soundtrack.

    Returns:
        float32 [n_samples, 2] at 48 kHz, peak at most 0.9, and the sound events of the truth file
        ({"start", "end", "label", "character"}, seconds).
    """
    total = round(time.n_frames / FPS * RATE)
    dry, wet = np.zeros((total, 2), np.float32), np.zeros(total, np.float32)
    events = []
    for i, sound in enumerate(sounds(film, time)):
        label, make = EFFECTS[sound.effect]
        wave = make(np.random.default_rng([seed, 101, i])) * sound.gain
        at = round(sound.start * RATE)
        wave = wave[: max(0, total - at)]
        angle = (sound.pan + 1) * np.pi / 4
        dry[at : at + len(wave), 0] += wave * np.cos(angle) * 1.2
        dry[at : at + len(wave), 1] += wave * np.sin(angle) * 1.2
        wet[at : at + len(wave)] += wave
        end = at + int(np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())[-1]) + 1 if len(wave) else at
        events.append({"start": round(at / RATE, 3), "end": round(end / RATE, 3), "label": label, "character": sound.character})
    for i, bed in enumerate(film.beds):
        first = time.starts[bed.first]
        last = time.starts[bed.last] + film.shots[bed.last].frames
        seconds = (last - first) / FPS
        at = round(first / FPS * RATE)
        if bed.sound in INSTRUMENTS:
            wave = melody(bed.sound, bed.tune, bed.beat, seconds) * bed.gain
            wet[at : at + len(wave)] += 0.5 * wave[: total - at]
            stereo = np.stack([wave, wave], 1)
        else:
            rng = np.random.default_rng([seed, 202, i])
            make_bed = AMBIENCE[bed.sound]
            stereo = np.stack([make_bed(rng, seconds), make_bed(rng, seconds)], 1) * bed.gain
        ramp = np.minimum(1, np.minimum(np.arange(len(stereo)), np.arange(len(stereo))[::-1]) / (0.25 * RATE)).astype(
            np.float32
        )
        stereo = (stereo * ramp[:, None])[: total - at]
        dry[at : at + len(stereo)] += stereo
    return _master(dry + _room(wet, seed)), events


def _room(wave: np.ndarray, seed: int) -> np.ndarray:
    """A short, quiet reverberation, different in each ear."""
    n = int(0.9 * RATE)
    size = 1 << (len(wave) + n - 1).bit_length()
    spectrum = np.fft.rfft(wave, size)
    out = []
    for side in range(2):
        rng = np.random.default_rng([seed, 303, side])
        tail = rng.standard_normal(n) * np.exp(-np.arange(n) / (0.22 * RATE))
        tail = np.convolve(tail, np.ones(6) / 6)[:n]
        out.append(np.fft.irfft(spectrum * np.fft.rfft(tail * 0.016, size), size)[: len(wave)])
    return np.stack(out, 1).astype(np.float32)


def _master(stereo: np.ndarray) -> np.ndarray:
    """Soft limiting, and silence at both ends."""
    out = np.tanh(stereo * 1.1) * 0.9
    edge = np.minimum(1, np.minimum(np.arange(len(out)), np.arange(len(out))[::-1]) / (0.4 * RATE))
    return (out * edge[:, None]).astype(np.float32)
