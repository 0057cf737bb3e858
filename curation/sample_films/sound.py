"""Sounds synthesised with numpy: short effects by name, ambiences and instruments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 48_000
Wave = np.ndarray  # float32 [n], mono
Random = np.random.Generator


def _time(seconds: float) -> Wave:
    return np.arange(int(seconds * RATE), dtype=np.float32) / RATE


def _phase(frequency: Wave | float, n: int) -> Wave:
    """Running phase in radians of a frequency in Hz."""
    return (2 * np.pi * np.cumsum(np.broadcast_to(frequency, n).astype(np.float64)) / RATE).astype(np.float64)


def band(rng: Random, seconds: float, low: float, high: float) -> Wave:
    """Noise between two frequencies in Hz with soft edges, peak about 1."""
    n = int(seconds * RATE)
    size = 1 << max(n - 1, 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size))
    f = np.fft.rfftfreq(size, 1 / RATE) + 1e-3
    shape = 1 / (1 + (low / f) ** 4) / (1 + (f / high) ** 4)
    wave = np.fft.irfft(spectrum * shape, size)[:n]
    return (wave / (np.abs(wave).max() + 1e-9)).astype(np.float32)


def decay(seconds: float, tau: float, attack: float = 0.004) -> Wave:
    """An envelope that rises in `attack` seconds and dies away with time constant `tau`."""
    t = _time(seconds)
    return (np.minimum(t / attack, 1) * np.exp(-t / tau) * np.minimum((seconds - t) / 0.01, 1)).astype(np.float32)


def glide(start: float, end: float, seconds: float, bend: float = 1.0) -> Wave:
    """A sine that slides from one frequency to another."""
    u = (_time(seconds) / seconds) ** bend
    f = start * (end / start) ** u
    return np.sin(_phase(f, len(f))).astype(np.float32)


def _step(rng: Random) -> Wave:
    thump = glide(150 * rng.uniform(0.9, 1.1), 70, 0.14) * decay(0.14, 0.03)
    return 0.8 * thump + 0.4 * band(rng, 0.14, 700, 2500) * decay(0.14, 0.02)


def _splash_step(rng: Random) -> Wave:
    return 0.5 * _pad(_step(rng), 0.2) + 0.7 * band(rng, 0.2, 1200, 6000) * decay(0.2, 0.06, 0.015)


def _grass_step(rng: Random) -> Wave:
    return 0.8 * band(rng, 0.16, 1800, 5200) * decay(0.16, 0.035, 0.02)


def _snow_step(rng: Random) -> Wave:
    grains = (rng.random(int(0.2 * RATE)) < 0.02) * rng.uniform(-1, 1, int(0.2 * RATE))
    return (0.9 * band(rng, 0.2, 500, 2600) * decay(0.2, 0.05, 0.03) + 0.3 * grains * decay(0.2, 0.06)).astype(np.float32)


def _heavy_step(rng: Random) -> Wave:
    return 1.0 * glide(90, 38, 0.4) * decay(0.4, 0.1) + 0.5 * _pad(_snow_step(rng), 0.4)


def _metal_step(rng: Random) -> Wave:
    f = rng.uniform(0.96, 1.04)
    ring = sum(np.sin(2 * np.pi * f * k * _time(0.16)) * a for k, a in ((640, 0.5), (1490, 0.3), (2330, 0.15)))
    return (0.5 * ring * decay(0.16, 0.025) + 0.6 * glide(170, 80, 0.16) * decay(0.16, 0.03)).astype(np.float32)


def _pad(wave: Wave, seconds: float) -> Wave:
    n = int(seconds * RATE)
    return np.pad(wave, (0, max(0, n - len(wave))))[:n]


def _splash(rng: Random) -> Wave:
    body = band(rng, 1.0, 400, 5200) * decay(1.0, 0.22, 0.02)
    for _ in range(10):
        at, f = rng.uniform(0.15, 0.8), rng.uniform(500, 1500)
        drop = glide(f, f * 1.7, 0.05) * decay(0.05, 0.02) * 0.22
        i = int(at * RATE)
        body[i : i + len(drop)] += drop[: len(body) - i]
    return body


def _plop(rng: Random) -> Wave:
    return 0.8 * glide(320, 900, 0.2, 0.7) * decay(0.2, 0.05) + 0.35 * band(rng, 0.2, 1500, 5000) * decay(0.2, 0.05)


def _thunder(rng: Random) -> Wave:
    crack = band(rng, 4.0, 300, 5000) * decay(4.0, 0.16, 0.002)
    t = _time(4.0)
    roll = band(rng, 4.0, 25, 190) * np.exp(-t / 1.5) * (0.65 + 0.35 * np.sin(2 * np.pi * (1.3 * t + 0.4 * np.sin(2.1 * t))))
    return (0.8 * crack + 1.2 * roll * np.minimum(t / 0.05, 1) * np.minimum((4.0 - t) / 0.5, 1)).astype(np.float32)


def _door(rng: Random) -> Wave:
    creak = np.sign(np.sin(_phase(90 + 60 * np.sin(5 * _time(0.5)), int(0.5 * RATE)))).astype(np.float32)
    out = _pad(0.12 * creak * decay(0.5, 0.3, 0.1), 0.95)
    slam = 1.0 * glide(120, 55, 0.4) * decay(0.4, 0.07) + 0.4 * band(rng, 0.4, 200, 1500) * decay(0.4, 0.04)
    out[int(0.5 * RATE) : int(0.5 * RATE) + len(slam)] += slam[: len(out) - int(0.5 * RATE)]
    return out


def _voice(pitches: tuple[float, ...], seconds: float, breath: float, rng: Random, vibrato: float = 0.02) -> Wave:
    """A wordless voice: a buzz through two formants, its pitch running through `pitches` (Hz)."""
    t = _time(seconds)
    f = np.interp(t, np.linspace(0, seconds, len(pitches)), pitches) * (1 + vibrato * np.sin(2 * np.pi * 7 * t))
    phase = _phase(f, len(t))
    wave = sum(np.sin(k * phase) / k**1.3 for k in range(1, 9))
    edge = np.minimum(np.minimum(t / 0.03, 1), (seconds - t) / 0.06)
    return (0.45 * wave * edge + breath * band(rng, seconds, 800, 4000) * edge).astype(np.float32)


def _repeat(piece: Callable[[int], Wave], count: int, gap: float, seconds: float) -> Wave:
    out = np.zeros(int(seconds * RATE), np.float32)
    for i in range(count):
        wave, at = piece(i), int(i * gap * RATE)
        out[at : at + len(wave)] += wave[: max(0, len(out) - at)]
    return out


def _giggle(rng: Random) -> Wave:
    return _repeat(lambda i: 0.6 * _voice((620 + 40 * i, 740 + 40 * i, 560), 0.11, 0.08, rng), 4, 0.15, 0.75)


def _ribbit(rng: Random) -> Wave:
    def croak(i: int) -> Wave:
        t = _time(0.2)
        pulse = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * 42 * t))
        return (_voice((170, 230 + 90 * i), 0.2, 0.02, rng) * pulse).astype(np.float32)

    return _repeat(croak, 2, 0.24, 0.6)


def _boing(rng: Random) -> Wave:
    t = _time(0.8)
    f = 190 + 150 * np.exp(-t * 3) * np.sin(2 * np.pi * 11 * t) + 180 * t
    return (0.8 * np.sin(_phase(f, len(t))) * decay(0.8, 0.3)).astype(np.float32)


def _ping(rng: Random) -> Wave:
    t = _time(0.8)
    return (0.35 * sum(np.sin(2 * np.pi * f * t) for f in (1318.5, 1975.5, 2637)) * decay(0.8, 0.2) / 1.5).astype(np.float32)


def _whistle(rng: Random) -> Wave:
    return 0.5 * glide(2600, 420, 1.8, 1.4) * np.minimum(_time(1.8) / 0.3, 1).astype(np.float32)


def _boom(rng: Random) -> Wave:
    return (1.2 * glide(110, 32, 1.4) * decay(1.4, 0.35) + 0.7 * band(rng, 1.4, 80, 1800) * decay(1.4, 0.16)).astype(np.float32)


def _zap(rng: Random) -> Wave:
    t = _time(0.7)
    buzz = np.sign(np.sin(2 * np.pi * 110 * t)) * (rng.random(len(t)) < 0.6)
    return (0.5 * buzz * decay(0.7, 0.2) + 0.8 * band(rng, 0.7, 2500, 12000) * decay(0.7, 0.12)).astype(np.float32)


def _meow(rng: Random) -> Wave:
    return 0.8 * _voice((480, 760, 820, 700, 420), 0.65, 0.03, rng)


def _beep(rng: Random) -> Wave:
    t = _time(0.12)
    return (0.5 * np.sin(2 * np.pi * 1760 * t) * np.minimum(np.minimum(t / 0.005, 1), (0.12 - t) / 0.01)).astype(np.float32)


def _robot(rng: Random) -> Wave:
    notes = rng.permutation([880, 1174, 1396, 1046])
    return _repeat(lambda i: 0.4 * glide(notes[i] * 0.9, notes[i], 0.1) * decay(0.1, 0.06), 4, 0.11, 0.5)


def _chime(rng: Random) -> Wave:
    def bell(i: int) -> Wave:
        f = 1046.5 * 2 ** ((0, 4, 7, 12, 16)[i] / 12)
        t = _time(1.2)
        return ((np.sin(2 * np.pi * f * t) + 0.4 * np.sin(2 * np.pi * 2.76 * f * t)) * decay(1.2, 0.35) * 0.3).astype(
            np.float32
        )

    return _repeat(bell, 5, 0.08, 1.6)


def _ratchet(rng: Random) -> Wave:
    return _repeat(lambda i: 0.7 * band(rng, 0.03, 1500, 6000) * decay(0.03, 0.008), 8, 0.055, 0.5)


def _shutter(rng: Random) -> Wave:
    return _repeat(lambda i: 0.9 * band(rng, 0.06, 900 + 900 * i, 7000) * decay(0.06, 0.012), 2, 0.09, 0.3)


def _sneeze(rng: Random) -> Wave:
    intake = 0.35 * band(rng, 0.6, 900, 4000) * (_time(0.6) / 0.6) ** 2
    burst = _voice((300, 190), 0.45, 0.5, rng) + 0.8 * band(rng, 0.45, 600, 6000) * decay(0.45, 0.12)
    return np.concatenate([intake, burst]).astype(np.float32)


def _slide(rng: Random) -> Wave:
    t = _time(1.6)
    return (0.5 * band(rng, 1.6, 1500, 5000) * np.exp(-t / 0.9) * (0.7 + 0.3 * np.sin(2 * np.pi * 9 * t))).astype(np.float32)


def _clack(rng: Random) -> Wave:
    return 0.8 * band(rng, 0.1, 500, 3000) * decay(0.1, 0.018) + 0.5 * glide(420, 260, 0.1) * decay(0.1, 0.02)


def _whoosh(rng: Random) -> Wave:
    t = _time(1.0)
    return (0.8 * band(rng, 1.0, 300, 3200) * np.sin(np.pi * t) ** 2).astype(np.float32)


def _rustle(rng: Random) -> Wave:
    t = _time(0.35)
    return (0.6 * band(rng, 0.35, 2500, 9000) * np.abs(np.sin(2 * np.pi * 9 * t)) * np.minimum((0.35 - t) / 0.1, 1)).astype(
        np.float32
    )


EFFECTS: dict[str, tuple[str, Callable[[Random], Wave]]] = {
    "step": ("footstep", _step),
    "splash_step": ("splashing footstep", _splash_step),
    "grass_step": ("footstep in grass", _grass_step),
    "snow_step": ("footstep in snow", _snow_step),
    "heavy_step": ("heavy footstep", _heavy_step),
    "metal_step": ("metallic footstep", _metal_step),
    "splash": ("splash", _splash),
    "plop": ("plop", _plop),
    "thunder": ("thunder", _thunder),
    "door": ("door", _door),
    "giggle": ("giggle", _giggle),
    "ribbit": ("croak", _ribbit),
    "boing": ("spring", _boing),
    "ping": ("bright ping", _ping),
    "pop": ("pop", lambda rng: 0.9 * glide(300, 1100, 0.09) * decay(0.09, 0.03)),
    "sigh": ("sigh", lambda rng: _voice((420, 300, 240), 0.8, 0.2, rng) * 0.5),
    "sniff": (
        "sniffing",
        lambda rng: _repeat(lambda i: 0.5 * band(rng, 0.18, 1500, 6000) * decay(0.18, 0.07, 0.05), 2, 0.32, 0.6),
    ),
    "yelp": ("yelp", lambda rng: 0.9 * _voice((560, 900, 760), 0.35, 0.1, rng)),
    "gasp": (
        "gasp",
        lambda rng: 0.5 * band(rng, 0.35, 900, 5000) * (_time(0.35) / 0.35) ** 1.5 + 0.4 * _voice((520, 760), 0.35, 0.1, rng),
    ),
    "hum": ("puzzled hum", lambda rng: 0.7 * _voice((240, 210, 330), 0.6, 0.02, rng)),
    "low_hum": ("deep murmur", lambda rng: 0.9 * _voice((110, 95, 140), 0.8, 0.04, rng)),
    "whistle": ("falling whistle", _whistle),
    "boom": ("crash", _boom),
    "zap": ("electric zap", _zap),
    "meow": ("meow", _meow),
    "beep": ("beep", _beep),
    "robot": ("robot chirps", _robot),
    "chime": ("sparkling chime", _chime),
    "ratchet": ("ratchet", _ratchet),
    "shutter": ("camera shutter", _shutter),
    "sneeze": ("sneeze", _sneeze),
    "slide": ("sliding on ice", _slide),
    "clack": ("clack", _clack),
    "whoosh": ("whoosh", _whoosh),
    "rustle": ("paper rustle", _rustle),
}


def _swell(rng: Random, n: int, period: float, depth: float) -> Wave:
    t = np.arange(n // 480 + 2) / 100
    slow = np.sin(2 * np.pi * t / period + rng.uniform(0, 6)) + 0.6 * np.sin(
        2 * np.pi * t / (period * 0.37) + rng.uniform(0, 6)
    )
    coarse = (1 - depth + depth * (0.5 + 0.3 * slow)).astype(np.float32)
    return np.interp(np.arange(n, dtype=np.float32) / 480, np.arange(len(coarse)), coarse).astype(np.float32)


def _loop(rng: Random, seconds: float, low: float, high: float) -> Wave:
    """Long noise made of an eight-second piece with its ends blended."""
    piece = band(rng, 8.5, low, high)
    edge = int(0.5 * RATE)
    ramp = np.linspace(0, 1, edge, dtype=np.float32)
    piece[:edge] = piece[:edge] * np.sqrt(ramp) + piece[-edge:] * np.sqrt(1 - ramp)
    piece = piece[:-edge]
    n = int(seconds * RATE)
    return np.tile(piece, n // len(piece) + 1)[:n]


def _birds(rng: Random, seconds: float) -> Wave:
    out = np.zeros(int(seconds * RATE), np.float32)
    t = 0.3
    while t < seconds - 1:
        f = rng.uniform(2600, 4200)
        for i in range(int(rng.integers(2, 5))):
            chirp = 0.22 * glide(f, f * rng.uniform(1.1, 1.5), 0.08) * decay(0.08, 0.04)
            at = int((t + 0.12 * i) * RATE)
            out[at : at + len(chirp)] += chirp[: max(0, len(out) - at)]
        t += rng.uniform(0.7, 1.6)
    return out


def _fire(rng: Random, seconds: float) -> Wave:
    n = int(seconds * RATE)
    crackle = (rng.random(n) < 0.00012) * rng.uniform(0.4, 1.0, n)
    kernel = band(rng, 0.02, 1200, 6000) * decay(0.02, 0.004)
    return (np.convolve(crackle, kernel)[:n] + 0.12 * _loop(rng, seconds, 40, 260)).astype(np.float32)


AMBIENCE: dict[str, Callable[[Random, float], Wave]] = {
    "rain": lambda rng, s: 0.20 * _loop(rng, s, 900, 8000) * _swell(rng, int(s * RATE), 5, 0.3),
    "rain_window": lambda rng, s: 0.22 * _loop(rng, s, 150, 900),
    "wind": lambda rng, s: 0.4 * _loop(rng, s, 120, 520) * _swell(rng, int(s * RATE), 3.4, 0.8),
    "water": lambda rng, s: 0.25 * _loop(rng, s, 350, 1500) * _swell(rng, int(s * RATE), 2.6, 0.9),
    "birds": _birds,
    "city": lambda rng, s: 0.25 * _loop(rng, s, 50, 240),
    "fire": _fire,
    "cave": lambda rng, s: 0.3 * _loop(rng, s, 70, 300) * _swell(rng, int(s * RATE), 6, 0.5),
    "machines": lambda rng, s: (
        0.16
        * _loop(rng, s, 90, 420)
        * (0.75 + 0.25 * np.sign(np.sin(2 * np.pi * 2 * np.arange(int(s * RATE)) / RATE))).astype(np.float32)
    ),
}


def _note_musicbox(f: float) -> Wave:
    t = _time(1.6)
    return (
        (np.sin(2 * np.pi * f * t) + 0.35 * np.sin(2 * np.pi * 4.02 * f * t) * np.exp(-9 * t)) * decay(1.6, 0.42) * 0.3
    ).astype(np.float32)


def _note_pluck(f: float) -> Wave:
    t = _time(0.9)
    return (
        sum(np.sin(2 * np.pi * k * f * t) / k**1.4 * np.exp(-2.6 * k * t) for k in range(1, 6)) * decay(0.9, 0.4) * 0.3
    ).astype(np.float32)


def _note_pad(f: float) -> Wave:
    t = _time(3.4)
    edge = np.minimum(np.minimum(t / 0.8, 1), (3.4 - t) / 0.9)
    return (sum(np.sin(2 * np.pi * k * f * d * t) / k**1.6 for k in (1, 2, 3) for d in (0.997, 1.004)) * edge * 0.14).astype(
        np.float32
    )


INSTRUMENTS: dict[str, Callable[[float], Wave]] = {"musicbox": _note_musicbox, "pluck": _note_pluck, "pad": _note_pad}


def melody(instrument: str, tune: tuple[int, ...], beat: float, seconds: float) -> Wave:
    """A tune of MIDI notes, repeated to fill the time, on one instrument."""
    out = np.zeros(int(seconds * RATE) + 4 * RATE, np.float32)
    notes = {n: INSTRUMENTS[instrument](440 * 2 ** ((n - 69) / 12)) for n in set(tune) if n}
    for i in range(int((seconds - 0.4) / beat)):
        note = tune[i % len(tune)]
        if note:
            at = int(i * beat * RATE)
            out[at : at + len(notes[note])] += notes[note] * (1.0 if i % 4 == 0 else 0.8)
    return out[: int(seconds * RATE)]
