"""A voice that talks: made-up syllables from a model of the vocal tract, near enough to speech for a detector."""

import numpy as np

VOWELS = [(730, 1090, 2440), (270, 2290, 3010), (530, 1840, 2480), (570, 840, 2410), (300, 870, 2240), (660, 1720, 2410)]


def talk(seconds, *, rate=48000, seed=0):
    """Syllables without meaning: a hiss, then pulses of a falling pitch through three formants; float32 [samples]."""
    rng = np.random.default_rng(seed)
    wave, at = np.zeros(round(seconds * rate)), 0
    while at < wave.size - rate // 3:
        hiss, length = int(rate * 0.05), int(rate * rng.uniform(0.12, 0.22))
        pitch = np.linspace(rng.uniform(110, 220), rng.uniform(85, 160), length)
        pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0) - pitch.mean() / rate
        frequency = 2j * np.pi * np.fft.rfftfreq(2 * length, 1 / rate)
        response = np.ones(frequency.size, complex)
        for formant, width in zip(VOWELS[rng.integers(len(VOWELS))], (60, 90, 120)):
            pole = -np.pi * width + 2j * np.pi * formant
            response *= abs(pole) ** 2 / ((frequency - pole) * (frequency - pole.conjugate()))
        vowel = np.fft.irfft(np.fft.rfft(pulses, 2 * length) * response)[:length] * np.hanning(length) ** 0.4
        wave[at : at + hiss] += 0.12 * rng.standard_normal(hiss) * np.hanning(hiss)
        wave[at + hiss : at + hiss + length] += 0.4 * vowel / np.abs(vowel).max()
        at += hiss + length + int(rate * rng.choice([0.02, 0.03, 0.25], p=[0.5, 0.35, 0.15]))
    return wave.astype(np.float32)
