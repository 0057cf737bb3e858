"""Where a character is in a shot: one Protocol, :class:`Segmenter`, and a classical default that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from animeshooter_dataset import Character
from curation import colours
from curation.foreground import Palette, Shot, Study, analyse, analyse_story, surroundings
from curation.script import Sample, StoryScript, StoryView
from curation.verify import outlined


class Segmenter(Protocol):
    """Finds named characters in the frames of a shot."""

    def study(self, script: StoryScript, view: StoryView) -> None:
        """Look at a whole story before its shots are segmented; a segmenter that needs no context does nothing."""
        ...

    def segment(self, shot: Sequence[Sample], character: Character, cast: Sequence[Character]) -> list[np.ndarray | None]:
        """Mark one character in the sampled frames of one shot.

        Args:
            shot: frames of one shot in order, RGB uint8 [H, W, 3] of one size.
            character: whom to find.
            cast: every character that the shot lists, ``character`` among them.

        Returns:
            For each frame a bool mask [H, W], or None where the character was not found.
        """
        ...


@dataclass
class ClassicalSegmenter:
    """Foreground, colour statistics and GrabCut (Rother et al., SIGGRAPH 2004), without a trained model.

    A character's colours are learnt from three things: which colours move or stand out in the shots that list it, which
    of them also fill other shots and backgrounds, and which ones its description names. Pixels of its colours in the
    foreground seed GrabCut. Meant for drawn figures of few clear colours; where evidence is thin it returns None.

    Attributes:
        least_share: smallest figure it reports, as a share of the frame.
        apart: how much more of a figure's colours must stand in the foreground of its place than of the whole picture
            (mean over its pixels, -1..1 as in :func:`curation.foreground.surroundings`); else it is no figure but place.
        described: least mean fit (0..1) of a figure's pixels to the colours its description names, if it names any.
        fits: a figure that is not so apart must fit them by so much more than the rest of the picture,
        centred: and be foreground by so much more (both differences of means, 0..1).
    """

    least_share: float = 0.006
    apart: float = 0.28
    described: float = 0.08
    fits: float = 0.45
    centred: float = 0.25
    _palette: Palette | None = field(default=None, init=False, repr=False)
    _frames: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)
    _shots: list[Shot] = field(default_factory=list, init=False, repr=False)
    _places: list[np.ndarray] = field(default_factory=list, init=False, repr=False)
    _words: dict[str, np.ndarray | None] = field(default_factory=dict, init=False, repr=False)
    _scores: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def study(self, script: StoryScript, view: StoryView) -> None:
        """Learn the palette of the story and the colours of each character."""
        listed = [set(shot.characters) for shot in script.shots]
        self._learn(view.samples, listed, script.characters, analyse_story(view) if any(view.samples) else None)

    def segment(self, shot: Sequence[Sample], character: Character, cast: Sequence[Character]) -> list[np.ndarray | None]:
        """See :meth:`Segmenter.segment`; a shot or character that was not studied is studied by itself."""
        known = all(sample.frame in self._frames for sample in shot)
        if not known or any(member.id not in self._scores for member in (character, *cast)):
            everyone = list({member.id: member for member in (character, *cast)}.values())
            analysed = analyse([[sample.image for sample in shot]]) if shot else None
            self._learn([shot], [{member.id for member in everyone}], everyone, analysed)
        rivals = [member.id for member in cast if member.id != character.id]
        masks: list[np.ndarray | None] = []
        for sample in shot:
            small = self._find(*self._frames[sample.frame], character.id, rivals)
            masks.append(None if small is None else enlarge(small, sample.image))
        return masks

    def _learn(
        self,
        shots: Sequence[Sequence[Sample]],
        listed: Sequence[set[str]],
        characters: Sequence[Character],
        analysed: Study | None,
    ) -> None:
        if analysed is None:
            self._frames, self._scores = {}, {each.id: np.zeros(0, np.float32) for each in characters}
            return
        self._palette = analysed.palette
        seen = [shot for shot in analysed.shots if shot is not None]
        kept = [shot for shot in shots if shot]
        names = [name for shot, name in zip(shots, listed, strict=True) if shot]
        self._shots, self._places = seen, surroundings(seen, self._palette)
        self._frames = {sample.frame: (k, i) for k, shot in enumerate(kept) for i, sample in enumerate(shot)}
        texts = self._words = {each.id: colours.affinity(each.appearance, self._palette.lab) for each in characters}
        self._scores = {}
        for each in characters:
            others = [fit for name, fit in texts.items() if name != each.id and fit is not None]
            shown = [each.id in name for name in names]
            self._scores[each.id] = colour_scores(self._palette, seen, shown, texts[each.id], others)
        self._scores = {each.id: self._relearn(seen, names, each.id) for each in characters}

    def _relearn(self, seen: Sequence[Shot], names: Sequence[set[str]], name: str, most: int = 24) -> np.ndarray:
        """Scores of one character's colours by where first masks of it lie, so that colours nobody named count too."""
        assert self._palette is not None
        own = self._scores[name]
        inside, outside = np.zeros(len(own)), np.zeros(len(own))
        shown = [k for k, each in enumerate(names) if name in each]
        frames = {(k, round(part * (len(seen[k].images) - 1))) for k in shown for part in (0.3, 0.7)}
        chosen = sorted(frames)[:: max(1, -(-len(frames) // most))]
        for k, i in chosen:
            rivals = [other for other in sorted(names[k]) if other != name]
            mask = self._find(k, i, name, rivals, cut=False)
            if mask is not None:
                inside += self._palette.histogram(seen[k].labels[i], mask) / mask.size
                outside += self._palette.histogram(seen[k].labels[i], ~mask) / mask.size
        for k, shot in enumerate(seen):
            if k not in shown:
                labels = shot.labels[len(shot.labels) // 2]
                outside += self._palette.histogram(labels, np.ones(labels.shape)) / labels.size
        if inside.sum() == 0:
            return own
        inside, outside = inside @ self._palette.kernel, outside @ self._palette.kernel
        ratio = np.log((inside / inside.sum() + 2e-3) / (outside / max(outside.sum(), 1e-9) + 2e-3))
        return (0.5 * own + 0.5 * np.clip(ratio / 1.5, -1, 1)).astype(np.float32)

    def _find(self, k: int, i: int, name: str, rivals: Sequence[str], cut: bool = True) -> np.ndarray | None:
        """The character in frame ``i`` of the analysed shot ``k``, bool at working size."""
        import cv2

        shot, lively = self._shots[k], self._places[k]
        labels, front = shot.labels[i], shot.foreground[i]
        here = (np.where(lively < 0, 1.0, 0.4) * lively).astype(np.float32)
        general = self._scores[name]
        own, others = general + here, [self._scores[rival] + here for rival in rivals]
        score = cv2.GaussianBlur(own[labels], (0, 0), 1.2)
        evidence = score + 0.8 * (front - 0.35)
        taken = np.zeros(labels.shape, bool)
        for rival in others:
            lead = cv2.GaussianBlur((rival - own)[labels], (0, 0), 1.2)
            taken |= (lead > 0.35) & (cv2.GaussianBlur(rival[labels], (0, 0), 1.2) > 0.3)
        core = _main_group(_open((evidence > 0.45) & (score > 0.15) & ~taken, 3), evidence * (0.15 + front))
        if core is None or core.mean() < 0.4 * self.least_share:
            return None
        core, likely = _with_motion(core, evidence, shot.moving[i] > 0.5, score, taken, labels)
        mask = self._cut(shot.images[i], core, likely, taken) if cut else likely
        mask = None if mask is None else trim(mask, labels, general, shot.moving[i])
        mask = None if mask is None else snap(_with_bays(mask, taken, shot.moving[i]), shot.images[i])
        if mask is None or mask.mean() < self.least_share or float(score[mask].mean()) < 0.05:
            return None
        return mask if self._stands_out(mask, labels, front, lively, self._words[name]) else None

    def _stands_out(
        self, mask: np.ndarray, labels: np.ndarray, front: np.ndarray, lively: np.ndarray, words: np.ndarray | None
    ) -> bool:
        """Whether a mask shows a figure and not a piece of its place, and fits its description where that names colours."""
        apart = float(lively[labels][mask].mean()) >= self.apart
        if words is None or (not apart and mask.all()):
            return apart
        fit = words[labels]
        inside, outside = float(fit[mask].mean()), float(fit[~mask].mean()) if not mask.all() else 1.0
        if apart:
            return inside > self.described
        # one that stood still in its place wherever that was seen: the words are for it, and the picture around is not
        return inside - outside > self.fits and float(front[mask].mean() - front[~mask].mean()) > self.centred

    def _cut(self, image: np.ndarray, core: np.ndarray, likely: np.ndarray, taken: np.ndarray) -> np.ndarray | None:
        """GrabCut in and around ``likely``, with ``core`` as certain; None where there is nothing to tell apart."""
        import cv2

        height, width = core.shape
        near = _grow(likely, max(4, _reach(core) // 2))
        bx0, by0, bx1, by1 = _box(near)
        bx0, by0, bx1, by1 = max(bx0 - 8, 0), max(by0 - 8, 0), min(bx1 + 8, width), min(by1 + 8, height)
        window = np.s_[by0:by1, bx0:bx1]
        marks = np.full(core.shape, cv2.GC_PR_BGD, np.uint8)
        marks[likely] = cv2.GC_PR_FGD
        marks[cv2.erode(core.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0] = cv2.GC_FGD
        marks[taken | ~near] = cv2.GC_BGD
        part = np.ascontiguousarray(marks[window])
        if not ((part & 1) == 0).any() or not ((part & 1) == 1).any():
            return None
        cv2.setRNGSeed(0)
        background, figure = np.zeros((1, 65)), np.zeros((1, 65))
        crop = np.ascontiguousarray(image[window])
        cv2.grabCut(crop, part, None, background, figure, 1, cv2.GC_INIT_WITH_MASK)
        mask = np.zeros(core.shape, bool)
        mask[window] = (part & 1) == 1
        return mask


def _with_motion(
    core: np.ndarray,
    evidence: np.ndarray,
    moving: np.ndarray,
    score: np.ndarray,
    taken: np.ndarray,
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """A core with what moves along with it: (core, likely region).

    Where motion is scattered over the frame (parallax, rain), only what moves in likely colours counts. Where it is not,
    and much of the core moves, what lies beside the motion in colours that are elsewhere too leaves the core.
    """
    reach = _reach(core)
    moving = moving & ~taken
    compact = (moving & ~_grow(core, 2 * reach)).sum() < 0.4 * moving.sum()
    if compact and (core & moving).sum() > 0.45 * core.sum():
        kept = core & (_grow(_hull(moving & _grow(core, 3)), max(2, reach // 3)) | _only_in(core, labels))
        group = _main_group(kept, evidence)
        core = core if group is None else group
    along = moving if compact else moving & (score > -0.2)
    fitting = (score > 0.2) & _grow(core, 3 * reach)  # parts at rest, in colours that are nowhere else
    along = along & _grow(core, 2 * reach) | fitting & _only_in(fitting, labels, 0.6)
    likely = _fill(_close(core, 2 * (reach // 3) + 1)) | _touching(along, core)
    return core, likely & ~taken


def _hull(mask: np.ndarray) -> np.ndarray:
    """The convex hull of the set pixels."""
    import cv2

    points = cv2.findNonZero(_open(mask, 3).astype(np.uint8))
    full = np.zeros(mask.shape, np.uint8)
    if points is not None:
        cv2.fillConvexPoly(full, cv2.convexHull(points), 1)
    return full > 0


def _only_in(core: np.ndarray, labels: np.ndarray, share: float = 0.4) -> np.ndarray:
    """Pixels of the colours that occur mostly inside ``core``."""
    inside, every = np.bincount(labels[core], minlength=256), np.bincount(labels.ravel(), minlength=256)
    return (inside > share * every)[labels]


def _reach(core: np.ndarray) -> int:
    """How far around a core its figure may go on, pixels."""
    x0, y0, x1, y1 = _box(core)
    return max(4, round(0.12 * max(x1 - x0, y1 - y0)))


def trim(mask: np.ndarray, labels: np.ndarray, own: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    """Take from a mask what its surroundings are made of, and close the holes that are its own; None if none is left.

    A patch of a colour that the frame shows mostly outside the mask, and that does not speak for the character, is
    background that leaked in if the mask ends amid that colour. A hole is closed where it is small, moves with the
    figure, or has the character's colours.

    Args:
        mask: bool [h, w].
        labels: palette index of every pixel.
        own: what each palette colour says for the character, about -1..1.
        moving: how surely each pixel moves, 0..1.
    """
    import cv2

    inside = np.bincount(labels[mask], minlength=len(own))
    around = np.bincount(labels[~mask], minlength=len(own))
    leaked = (inside < 0.2 * (inside + around)) & (own < 0.0)
    kept = _open(mask & ~_unbounded(_open(leaked[labels] & mask, 3), mask, labels), 3)
    body = _main_group(kept, own[labels] + 1.5)
    if body is None:
        return None
    count, holes, stats, _ = cv2.connectedComponentsWithStats((~body).astype(np.uint8), connectivity=4)
    moves = np.bincount(holes.ravel(), moving.ravel(), count)
    speaks = np.bincount(holes.ravel(), own[labels].ravel(), count)
    height, width = mask.shape
    for k in range(1, count):
        x, y, w, h, area = stats[k]
        enclosed = x > 0 and y > 0 and x + w < width and y + h < height
        its_own = (moves[k] > 0.4 * area or speaks[k] > 0.05 * area) and area < 0.25 * body.sum()
        if enclosed and (area < 0.1 * body.sum() or its_own):
            body[holes == k] = True
    return body


def _with_bays(mask: np.ndarray, taken: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """A mask and its small bays in another character's colours that move as it does, such as eyes and teeth."""
    import cv2

    bays = _close(mask, 2 * _reach(mask) + 1) & ~mask & _grow(taken, 2)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(bays.astype(np.uint8))
    filled = mask.copy()
    for k in range(1, count):
        x, y, w, h, area = stats[k]
        window = np.s_[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
        part = parts[window] == k
        rim = _grow(part, 1.5) & ~part
        moves = float(moving[window][part].mean()) > 0.5
        if moves and 8 <= area < 0.12 * mask.sum() and float(mask[window][rim].mean()) > 0.55:
            filled[window] |= part
    return filled


def snap(mask: np.ndarray, image: np.ndarray, better: float = 0.15) -> np.ndarray:
    """Draw a mask in to the strongest edges around its middle (watershed), if its outline then lies on edges.

    A glow or a shadow goes along with its figure and ends amid a smooth area; the figure ends at an edge.

    Args:
        mask: bool [h, w].
        image: the picture, RGB uint8 [h, w, 3].
        better: least gain in the share of the outline that lies on an edge, 0..1.
    """
    import cv2

    before = outlined(image, mask)
    if before > 1 - better or mask.all():
        return mask
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    marks = np.zeros(mask.shape, np.int32)
    marks[~mask], marks[depth > 0.5 * depth.max()] = 1, 2
    cv2.watershed(np.ascontiguousarray(image), marks)
    drawn = _main_group((marks == 2) & mask, np.ones(mask.shape))
    if drawn is None or drawn.sum() < 0.2 * mask.sum():
        return mask
    drawn = _fill(_grow(drawn, 1) & mask)  # the watershed itself is a line of one pixel
    return drawn if outlined(image, drawn) > before + better else mask


def _unbounded(patches: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The connected patches of a mask that go on outside it: much of their rim is the mask's, and has their colours beyond."""
    import cv2

    count, parts, stats, _ = cv2.connectedComponentsWithStats(patches.astype(np.uint8))
    found = np.zeros(mask.shape, bool)
    for k in range(1, count):
        x, y, w, h, _ = stats[k]
        window = np.s_[max(y - 3, 0) : y + h + 3, max(x - 3, 0) : x + w + 3]
        part, here = parts[window] == k, labels[window]
        rim = _grow(part, 2) & ~part
        before = here[rim & ~mask[window]]
        if before.size > 0.35 * rim.sum() and np.isin(before, np.unique(here[part])).mean() > 0.5:
            found[window] |= part
    return found


def colour_scores(
    palette: Palette,
    shots: Sequence[Shot],
    shown: Sequence[bool],
    words: np.ndarray | None,
    others: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """How much each palette colour speaks for a character, float32 [n], about -1..1.

    Args:
        palette: the story's colours.
        shots: the story's analysed shots.
        shown: whether each shot lists the character.
        words: how well each colour fits its description, 0..1; None where that names no colour.
        others: the same for the other characters.
    """
    front, back = np.full(len(palette.lab), 1e-4), np.full(len(palette.lab), 1e-4)
    for shot, here in zip(shots, shown, strict=True):
        for labels, weight in zip(shot.labels, shot.foreground, strict=True):
            every = palette.histogram(labels, np.ones(labels.shape)) / labels.size / len(shot.labels)
            part = palette.histogram(labels, weight) / labels.size / len(shot.labels)
            front += part if here else 0
            back += every - part if here else every
    front, back = front @ palette.kernel, back @ palette.kernel
    learnt = np.clip(np.log((front / front.sum() + 2e-3) / (back / back.sum() + 2e-3)) / 1.5, -1, 1)
    if words is None:
        return (0.9 * learnt).astype(np.float32)
    rival = np.max([np.zeros(len(palette.lab)), *others], axis=0)
    trusted = np.clip(1 + 0.8 * learnt, 0.2, 1)  # a colour that backgrounds have too says little
    return (0.35 * learnt + 1.1 * words * trusted - 0.25 - 0.5 * np.maximum(rival - words, 0)).astype(np.float32)


def enlarge(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A working-size bool mask at the size of ``image`` [H, W, 3], its edge drawn to the image's (guided filter)."""
    import cv2

    height, width = image.shape[:2]
    soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if mask.shape == (height, width):
        return mask
    x0, y0, x1, y1 = _box(mask)
    scale = width / mask.shape[1]
    window = np.s_[max(int(y0 * scale) - 12, 0) : int(y1 * scale) + 12, max(int(x0 * scale) - 12, 0) : int(x1 * scale) + 12]
    guide = cv2.cvtColor(np.ascontiguousarray(image[window]), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    part = np.ascontiguousarray(soft[window])
    full = np.zeros((height, width), bool)
    full[window] = _guided(guide, part, 2 * round(scale) + 3, 1e-3) > 0.5
    return full


def _guided(guide: np.ndarray, source: np.ndarray, side: int, smooth: float) -> np.ndarray:
    """The guided filter of He, Sun and Tang (ECCV 2010) on grey float images."""
    import cv2

    def mean(image: np.ndarray) -> np.ndarray:
        return cv2.blur(image, (side, side))

    mean_guide, mean_source = mean(guide), mean(source)
    slope = (mean(guide * source) - mean_guide * mean_source) / (mean(guide * guide) - mean_guide**2 + smooth)
    return mean(slope) * guide + mean(mean_source - slope * mean_guide)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the set pixels, ends exclusive."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _disc(size: int) -> np.ndarray:
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _open(mask: np.ndarray, size: int) -> np.ndarray:
    import cv2

    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disc(size)) > 0


def _close(mask: np.ndarray, size: int) -> np.ndarray:
    by = size // 2
    return ~_grow(~np.pad(_grow(mask, by), by, mode="edge"), by)[by:-by, by:-by] if by else mask


def _grow(mask: np.ndarray, by: float) -> np.ndarray:
    """All within ``by`` pixels of a mask."""
    import cv2

    if not mask.any():
        return mask.copy()
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3) <= by


def _fill(mask: np.ndarray, most: float = 0.01) -> np.ndarray:
    """Fill holes that are small beside the frame or beside the mask."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    height, width = mask.shape
    limit = max(most * mask.size, 0.15 * mask.sum())
    filled = mask.copy()
    for k in range(1, count):
        x, y, w, h, area = stats[k]
        if x > 0 and y > 0 and x + w < width and y + h < height and area < limit:
            filled[labels == k] = True
    return filled


def _touching(mask: np.ndarray, core: np.ndarray) -> np.ndarray:
    """The connected parts of ``mask`` that touch ``core``."""
    import cv2

    count, labels = cv2.connectedComponents((mask | core).astype(np.uint8))
    keep = np.zeros(count, bool)
    keep[np.unique(labels[core])] = True
    return keep[labels] & (mask | core)


def _main_group(mask: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """The heaviest connected part of a mask with the parts close beside it; None for an empty mask."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return None
    mass = np.bincount(labels.ravel(), np.maximum(weight, 0.01).ravel(), count)
    mass[0] = 0
    main = labels == int(mass.argmax())
    _, _, w, h, area = stats[int(mass.argmax())]
    near = np.bincount(labels.ravel(), _grow(main, max(2, round(0.1 * max(w, h)))).ravel(), count)
    keep = [k for k in range(1, count) if stats[k, 4] >= 0.02 * area and near[k] > 0.3 * stats[k, 4]]
    return main | np.isin(labels, keep)
