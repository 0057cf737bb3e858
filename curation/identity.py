"""Which of a character's masks show the character: agreement of their colours across the shots of a story.

A character looks alike in shot after shot, in other places too; what was marked by mistake does not, or belongs to one place.
A character may have more than one look (another light, another coat), each borne out by several shots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from animeshooter_dataset import Character
from curation import colours
from curation.figures import link_likeness
from curation.script import Sample
from curation.verify import sharpness, touching

ALIKE_PLACES = 0.5
"""Histogram intersection of two backgrounds from which they are taken for one place."""


class IdentityRules(Protocol):
    """The settings that :func:`agreeing` reads; see :class:`curation.references.ReferenceConfig`."""

    @property
    def agreement(self) -> float: ...  # noqa: D102
    @property
    def relative(self) -> float: ...  # noqa: D102
    @property
    def look(self) -> float: ...  # noqa: D102
    @property
    def fits(self) -> float: ...  # noqa: D102
    @property
    def background(self) -> float: ...  # noqa: D102
    @property
    def shared(self) -> float: ...  # noqa: D102


@dataclass
class Candidate:
    """A mask that passed the rules for single masks.

    Attributes:
        character: id of the character it was found for.
        position: position of its shot in the story.
        sample: the frame.
        mask: bool [H, W].
        signature: its colours, see :func:`signature`.
        setting: the colours around it.
        fit: how much better its colours fit the ones that the character's description names than those around it do
            (difference of means, -1..1); None where it names none.
        sharpness: see :func:`curation.verify.sharpness`.
        touching: see :func:`curation.verify.touching`.
        small: why it is no reference itself, though it shows what its character looks like.
        agreement: likeness to the character's other shots, 0..1.
    """

    character: str
    position: int
    sample: Sample
    mask: np.ndarray
    signature: np.ndarray
    setting: np.ndarray
    fit: float | None
    sharpness: float
    touching: float
    small: str | None = None
    agreement: float = 1.0

    @classmethod
    def of(cls, character: Character, position: int, sample: Sample, mask: np.ndarray, small: str | None) -> Candidate:
        """Measure one mask."""
        image, rest = sample.image, ~mask[::3, ::3]
        return cls(
            character.id,
            position,
            sample,
            mask,
            signature(image, mask),
            signature(image[::3, ::3], rest),
            _fit(character, image, mask),
            sharpness(image, mask),
            touching(mask),
            small,
        )

    @property
    def score(self) -> float:
        """Quality as a reference, 0..1: sharp, whole, large, and like the others."""
        share = float(self.mask.mean())
        size = min(share / 0.2, 1.0) ** 0.5 * (1.0 if share < 0.5 else 0.6)
        return round(self.agreement**2 * (0.4 * self.sharpness + 0.35 * (1 - self.touching) + 0.25 * size), 4)


def signature(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colours of a masked image as a smoothed histogram over CIE Lab (6 x 8 x 8), summing to 1."""
    import cv2

    lab = colours.to_lab(_pixels(image, mask))
    cell = np.floor((lab + np.array([0, 64, 64])) * (6 / 100, 1 / 16, 1 / 16)).astype(int)
    cell = np.clip(cell, 0, (5, 7, 7)) @ (64, 8, 1)
    table = np.bincount(cell, minlength=384).astype(np.float64).reshape(6, 8, 8)
    smooth = np.stack([cv2.GaussianBlur(layer, (0, 0), 0.7) for layer in table])
    smooth = cv2.GaussianBlur(smooth.reshape(6, -1), (1, 3), 0.7).ravel()
    return smooth / max(smooth.sum(), 1e-9)


def agreeing(
    passed: Sequence[Candidate], characters: Sequence[Character], rules: IdentityRules, measured: bool
) -> tuple[list[list[Candidate]], list[tuple[Candidate, str]]]:
    """Sort out the candidates that show something else than their character; sets ``agreement`` of all.

    Masks too small for a reference have their say here before they are refused. Where most masks of a shot are refused, the
    others of it are too.

    Args:
        passed: candidates of all characters.
        characters: in the script's order.
        rules: the settings.
        measured: whether nobody but the masks themselves says that the characters are some.

    Returns:
        The candidates kept for each character, and the others with their reasons.
    """
    seen: dict[str, dict[int, list[Candidate]]] = {character.id: {} for character in characters}
    for each in passed:
        seen[each.character].setdefault(each.position, []).append(each)
    typical = {name: {k: np.mean([each.signature for each in g], 0) for k, g in own.items()} for name, own in seen.items()}
    places = _settings({k: [each for each in passed if each.position == k] for k in sorted({e.position for e in passed})})
    kept: list[list[Candidate]] = []
    refused: list[tuple[Candidate, str]] = []
    for name, own in seen.items():
        kept.append([])
        rivals = {other: list(means.values()) for other, means in typical.items() if other != name and means}
        for look, doubt in _looks(own, typical[name], rules, measured):
            level = _agree(look, own, typical[name])
            behind = [] if measured is False and _fit_of(look, own) >= rules.fits else list(places.values())
            for position in look:
                group = own[position]
                whys = [doubt or _why_not(each, len(own) > 1, level, rivals, behind, rules) for each in group]
                doubtful = sum(why is not None for why in whys) > len(group) / 2
                for each, why in zip(group, whys, strict=True):
                    why = why or ("most masks of the shot are refused" if doubtful else each.small)
                    if why is None:
                        kept[-1].append(each)
                    else:
                        refused.append((each, why))
    return kept, refused + (_doubles(kept, rules) if measured else [])


def _doubles(kept: list[list[Candidate]], rules: IdentityRules) -> list[tuple[Candidate, str]]:
    """Take out measured figures in the colours of another one: parts of the same thing. The one seen in most shots stays."""
    refused: list[tuple[Candidate, str]] = []
    stay: list[tuple[str, np.ndarray]] = []
    size = [float(np.mean([each.mask.mean() for each in group] or [0.0])) for group in kept]
    for i in sorted(range(len(kept)), key=lambda i: (-len({each.position for each in kept[i]}), -size[i], i)):
        if not kept[i]:
            continue
        look = np.mean([each.signature for each in kept[i]], 0)
        shared = {name: max(look[other > 0.02].sum(), other[look > 0.02].sum()) for name, other in stay}
        twin = max(shared, key=lambda name: shared[name], default="")
        if twin and shared[twin] > rules.shared:
            refused += [(each, f"a measured figure in the colours of {twin} ({shared[twin]:.2f})") for each in kept[i]]
            kept[i] = []
        else:
            stay.append((kept[i][0].character, look))
    return refused


def _looks(
    own: dict[int, list[Candidate]], typical: dict[int, np.ndarray], rules: IdentityRules, measured: bool
) -> list[tuple[list[int], str | None]]:
    """The shots of a character grouped by what was marked in them, the most first, and why a group is not believed.

    One is believed that comes in unlike places (what belongs to a place does not), or in the only place there is; or that the
    description bears out against its surroundings. A second look must come three times. A lone shot is believed where there
    is no other, or where nothing else is and the description bears it out.
    """
    shots = sorted(own)
    settings = _settings(own)
    looks = [[shots[i] for i in group] for group in link_likeness(_intersections([typical[k] for k in shots]), rules.look)]
    looks.sort(key=lambda look: (-len(look), -_fit_of(look, own), look))
    found: list[tuple[list[int], str | None]] = []
    for look in looks:
        same = np.array([[np.minimum(settings[a], settings[b]).sum() for b in shots] for a in look]) >= ALIKE_PLACES
        inside = [shots.index(k) for k in look]
        wanders = not same[:, inside].all()
        everywhere = bool(same.any(0).all())
        borne_out = not measured and _fit_of(look, own) >= rules.fits
        first = all(why is not None for _, why in found)
        why = None
        if len(shots) > 1 and not (borne_out and (first or len(look) > 1)):
            if len(look) == 1:
                why = "looks unlike the character's other shots"
            elif not wanders and not everywhere:
                why = "looks like none of the character's shots in other places"
            elif not first and (measured or len(look) < 3 or not wanders):
                why = "looks unlike most of the character's shots"
        found.append((look, why))
    return found


def _settings(own: dict[int, list[Candidate]]) -> dict[int, np.ndarray]:
    """The mean colours around the candidates of each shot."""
    return {k: np.mean([each.setting for each in group], 0) for k, group in own.items()}


def _fit_of(look: Sequence[int], own: dict[int, list[Candidate]]) -> float:
    """The mean fit of a look's candidates; -1 where the description names no colours."""
    return float(np.mean([-1.0 if each.fit is None else each.fit for k in look for each in own[k]]))


def _agree(look: Sequence[int], own: dict[int, list[Candidate]], typical: dict[int, np.ndarray]) -> float:
    """Set the candidates' agreement with the other shots of their look; returns that of the shot which agrees best."""
    level = 0.0
    for position in look:
        others = [typical[other] for other in look if other != position]
        for each in own[position]:
            each.agreement = _likeness(each.signature, others) if others else 0.8
        level = max(level, float(np.median([each.agreement for each in own[position]])))
    return level


def _why_not(
    each: Candidate,
    several: bool,
    level: float,
    rivals: dict[str, list[np.ndarray]],
    places: Sequence[np.ndarray],
    rules: IdentityRules,
) -> str | None:
    """Why a candidate of a look that is believed does not show the character; None if it may."""
    if not several:
        return None
    if each.agreement < max(rules.agreement, rules.relative * level):
        return f"looks unlike the character's other shots ({each.agreement:.2f})"
    place = max((float(np.minimum(each.signature, one).sum()) for one in places), default=0.0)
    if place > rules.background:
        return f"its colours are those of a background ({place:.2f})"
    likeness = {name: _likeness(each.signature, means) for name, means in rivals.items()}
    rival = max(likeness, key=lambda name: likeness[name], default="")
    if rival and likeness[rival] > each.agreement:
        return f"looks more like {rival} ({likeness[rival]:.2f} against {each.agreement:.2f})"
    return None


def _likeness(own: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """The median histogram intersection with other signatures, 0..1."""
    return float(np.median([np.minimum(own, other).sum() for other in others]))


def _intersections(signatures: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([[float(np.minimum(a, b).sum()) for b in signatures] for a in signatures])


def _fit(character: Character, image: np.ndarray, mask: np.ndarray) -> float | None:
    """See :attr:`Candidate.fit`."""
    inside = colours.affinity(character.appearance, colours.to_lab(_pixels(image, mask, 1500)))
    outside = colours.affinity(character.appearance, colours.to_lab(_pixels(image, ~mask, 1500)))
    return None if inside is None or outside is None or not outside.size else float(inside.mean() - outside.mean())


def _pixels(image: np.ndarray, mask: np.ndarray, most: int = 4000) -> np.ndarray:
    """At most about ``most`` pixels under a mask, evenly spaced, RGB uint8 [n, 3]."""
    chosen = np.flatnonzero(mask)
    return image.reshape(-1, 3)[chosen[:: max(1, len(chosen) // most)]]
