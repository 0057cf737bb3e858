"""From storyboard to pictures: places the drawings and painted planes under the camera, frame by frame."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from . import effects, svg
from .rig import ACTIONS, Pose, Rig
from .storyboard import FLASH, FPS, HEIGHT, WIDTH, Act, Film, Keys, Layer, Scene, Shot, Timeline, timeline

Camera = tuple[float, float, float]
Seen = dict[str, tuple[slice, slice, np.ndarray]]  # character -> rows, columns, alpha of its pixels still visible
MARGIN = 80  # units a cropped close-up drawing may hang over the picture


@dataclass
class Picture:
    """A composited frame and the visible pixels of each character in it."""

    image: np.ndarray  # uint8 [H, W, 3], blue-green-red
    masks: dict[str, np.ndarray]  # character -> bool [H, W]


def smooth(x: float) -> float:
    """Ease in and out over [0, 1]."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def key_value(keys: Keys, t: float, ease: bool = True) -> float:
    """The value of (time, value) keys at a time, eased between them."""
    if t <= keys[0][0]:
        return keys[0][1]
    for (t0, v0), (t1, v1) in pairwise(keys):
        if t <= t1:
            share = (t - t0) / max(t1 - t0, 1e-6)
            return v0 + (v1 - v0) * (smooth(share) if ease else share)
    return keys[-1][1]


def camera_at(shot: Shot, t: float, frame: int) -> Camera:
    """Camera centre and zoom at a time of a shot, with its shake."""
    x, y, zoom = (key_value(tuple((k[0], k[i]) for k in shot.camera), t) for i in (1, 2, 3))
    if shot.shake and shot.shake[0] <= t < shot.shake[0] + 0.7:
        size = shot.shake[1] * (1 - (t - shot.shake[0]) / 0.7)
        x += size * math.sin(frame * 2.4)
        y += size * math.cos(frame * 3.1)
    return round(x, 2), round(y, 2), round(zoom, 4)


def action_at(act: Act, t: float) -> tuple[str, float]:
    """The action an act is in at a time, and the time since that action began."""
    if isinstance(act.action, str):
        return act.action, t
    name, begun = act.action[0][1], 0.0
    for start, action in act.action:
        if t >= start - 1e-6:
            name, begun = action, start
    return name, t - begun


def place_at(act: Act, t: float) -> tuple[float, float, float]:
    """Ground position of an act at a time, and its height above it while it leaps."""
    keys = act.at
    x = key_value(tuple((k[0], k[1]) for k in keys), t, act.ease)
    y = key_value(tuple((k[0], k[2]) for k in keys), t, act.ease)
    rise = 0.0
    if act.arc and len(keys) > 1 and keys[0][0] < t < keys[-1][0]:
        share = (t - keys[0][0]) / (keys[-1][0] - keys[0][0])
        rise = act.arc * 4 * share * (1 - share)
    return x, y, rise


def pose_at(act: Act, t: float, blinks: tuple[float, ...]) -> Pose:
    """The pose of an act at a time of its shot: its action, then its blinks, then the storyboard's own keys."""
    name, since = action_at(act, t)
    values = dict(ACTIONS[name](max(since, 0.0)))
    if act.blink:
        for moment in blinks:
            if 0 <= t - moment < 0.25:
                values["lids"] = (0.55, 1.0, 0.5)[min(int((t - moment) * 12 + 1e-6), 2)]
    for parameter, keys in act.tracks.items():
        values[parameter] = key_value(keys, t)
    grid: dict[str, Any] = {k: round(v, 2) if abs(v) <= 1.5 else round(v) for k, v in values.items()}
    return replace(Pose(prop=act.prop), **grid)


class Stage:
    """Draws the frames of one film; holds its painted planes and a store of drawings already made."""

    def __init__(self, film: Film, seed: int = 0) -> None:
        self.film, self.seed = film, seed
        self.time: Timeline = timeline(film)
        self.scenes = {s.id: s for s in film.scenes}
        self.rigs: dict[str, Rig] = {r.id: r for r in film.rigs}
        self.sprites: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self.planes: dict[tuple[str, int], np.ndarray] = {}
        self.backs: dict[tuple, np.ndarray] = {}
        self.cards: dict[int, list] = {}
        rng = np.random.default_rng([seed, 7])
        self.blinks = {
            (i, j): tuple(np.cumsum(rng.uniform(1.4, 3.2, 8)) - 0.6 + 0.0)
            for i, shot in enumerate(film.shots)
            for j in range(len(shot.acts))
        }

    @cached_property
    def vignette(self) -> np.ndarray:
        """Darkening towards the corners, uint8 [H, W, 3]."""
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        r2 = ((x - WIDTH / 2) / (WIDTH / 2)) ** 2 + ((y - HEIGHT / 2) / (HEIGHT / 2)) ** 2
        grey = np.clip(255 - 34 * np.maximum(r2 - 0.55, 0), 0, 255).astype(np.uint8)
        return cv2.merge([grey, grey, grey])

    def picture(self, frame: int) -> Picture:
        """The finished frame: the shot, or the two shots of a transition, under the fade and the flash of this moment."""
        at, now = self.time, self.time.shot_at(frame)
        picture = self._shot_picture(now, frame)
        for first, last in at.gradual:
            if first <= frame <= last:
                picture = self._transition(picture, frame, first, last, now)
        for first, last in at.flashes:
            if first <= frame <= last:
                white = FLASH[frame - first]
                picture.image = cv2.addWeighted(picture.image, 1 - white, np.full_like(picture.image, 255), white, 0)
        return picture

    def _transition(self, picture: Picture, frame: int, first: int, last: int, now: int) -> Picture:
        share = (frame - first + 1) / (last - first + 2)
        incoming = next((i for i, s in enumerate(self.time.starts) if first <= s <= last + 1), None)
        into = self.film.shots[incoming].into if incoming else "fade"
        if into == "dissolve" and incoming is not None:
            other = self._shot_picture(incoming if now < incoming else incoming - 1, frame)
            weight = 1 - share if now < incoming else share
            picture.image = cv2.addWeighted(picture.image, weight, other.image, 1 - weight, 0)
            return picture
        if first == 0:
            light = share
        elif last == self.time.n_frames - 1:
            light = 1 - share
        else:
            light = abs(2 * share - 1)
        picture.image = cv2.convertScaleAbs(picture.image, alpha=smooth(light))
        if light < 0.5:
            picture.masks = {}
        return picture

    def _shot_picture(self, index: int, frame: int) -> Picture:
        """One shot as it stands at a frame; frames outside it (in a dissolve) hold its nearest pose."""
        shot = self.film.shots[index]
        local = min(max(frame - self.time.starts[index], 0), shot.frames - 1)
        t, drawn = local / FPS, (local // 2) * 2 / FPS  # the camera moves on ones, the drawings on twos
        camera = camera_at(shot, t, local)
        scene = self.scenes[shot.scene] if shot.scene else None
        things: list[tuple[float, int, Layer | Act]] = []
        if scene:
            nearest = 20 if shot.blur else math.inf  # a close shot with soft focus has nothing in front of the characters
            things += [(layer.z, i, layer) for i, layer in enumerate(scene.layers) if layer.z < nearest or layer.near]
        things += [(act.z, 100 + j, act) for j, act in enumerate(shot.acts)]
        things.sort(key=lambda item: item[:2])
        first_act = next((k for k, item in enumerate(things) if isinstance(item[2], Act)), len(things))
        canvas = self._background(index, shot, scene, [i for _, i, _ in things[:first_act]], camera, drawn)
        seen: Seen = {}
        for _, number, thing in things[first_act:]:
            if isinstance(thing, Layer):
                assert scene is not None
                placed = self._plane_under(scene, number, thing, camera, drawn)
                if placed:
                    plane, rows, columns = placed
                    _over(canvas, plane, (rows, columns))
                    _hide(seen, plane[:, :, 3], columns.start, rows.start)
            else:
                self._act(canvas, shot, scene, thing, self.blinks[index, number - 100], camera, drawn, seen)
        air = shot.air if shot.air is not None else (scene.air if scene else ())
        for name in air:
            effects.AIR[name](canvas, self.time.starts[index] + local, self.seed, camera)
        if shot.card:
            self._card(canvas, index, shot, drawn, seen)
        masks = {}
        for who, (rows, columns, alpha) in seen.items():
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[rows, columns] = alpha > 127
            if mask.any():
                masks[who] = mask
        return Picture(cv2.multiply(cv2.cvtColor(canvas, cv2.COLOR_BGRA2BGR), self.vignette, scale=1 / 255), masks)

    def _background(
        self, index: int, shot: Shot, scene: Scene | None, layers: list[int], camera: Camera, drawn: float
    ) -> np.ndarray:
        """The planes behind the first character, kept while neither camera nor planes move."""
        if scene is None:
            return np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        moving = any(scene.layers[i].drift[:2] != (0.0, 0.0) for i in layers)
        key = (scene.id, tuple(layers), camera, shot.blur, drawn if moving else 0.0)
        if key not in self.backs:
            if len(self.backs) > 3:
                self.backs.clear()
            canvas = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
            for i in layers:
                placed = self._plane_under(scene, i, scene.layers[i], camera, drawn)
                if placed:
                    _over(canvas, placed[0], placed[1:])
            if shot.blur:
                small = cv2.resize(canvas, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
                small = cv2.GaussianBlur(small, (0, 0), shot.blur / 2)
                canvas = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
            self.backs[key] = canvas
        return self.backs[key].copy()

    def _plane_under(
        self, scene: Scene, i: int, layer: Layer, camera: Camera, drawn: float
    ) -> tuple[np.ndarray, slice, slice] | None:
        """The part of a plane inside the picture, and where it lies."""
        if (scene.id, i) not in self.planes:
            self.planes[scene.id, i] = svg.raster(layer.paint(self.seed), layer.box, layer.scale, scene.defs)
        image = self.planes[scene.id, i]
        cx, cy = scene.centre
        p = layer.parallax
        zoom = camera[2] ** (0.35 + 0.65 * p) if p < 1 else camera[2] ** p
        swing = math.sin(2 * math.pi * drawn / layer.drift[2]), math.cos(2 * math.pi * drawn / layer.drift[2])
        x = cx + (camera[0] - cx) * p - layer.drift[0] * swing[0]
        y = cy + (camera[1] - cy) * p - layer.drift[1] * swing[1]
        k = zoom / layer.scale
        left, top = WIDTH / 2 + (layer.box[0] - x) * zoom, HEIGHT / 2 + (layer.box[1] - y) * zoom
        x0, y0, x1, y1 = 0, 0, WIDTH, HEIGHT
        if layer.z > 0:  # a plane at the very back fills the picture, whatever its size
            x0, x1 = max(math.floor(left), 0), min(math.ceil(left + image.shape[1] * k) + 1, WIDTH)
            y0, y1 = max(math.floor(top), 0), min(math.ceil(top + image.shape[0] * k) + 1, HEIGHT)
        if x1 <= x0 or y1 <= y0:
            return None
        move = np.array([[k, 0, left - x0], [0, k, top - y0]], np.float32)
        edge = cv2.BORDER_REPLICATE if layer.z <= 0 else cv2.BORDER_CONSTANT
        part = cv2.warpAffine(image, move, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR, borderMode=edge)
        return part, slice(y0, y1), slice(x0, x1)

    def _act(
        self,
        canvas: np.ndarray,
        shot: Shot,
        scene: Scene | None,
        act: Act,
        blinks: tuple[float, ...],
        camera: Camera,
        drawn: float,
        seen: Seen,
    ) -> None:
        if not act.enter - 1e-6 <= drawn < act.leave - 1e-6:
            return
        rig = self.rigs[act.who]
        x, y, rise = place_at(act, drawn)
        face = act.face * (-1 if act.turn is not None and drawn >= act.turn else 1)
        zoom = camera[2]
        px, py = WIDTH / 2 + (x - camera[0]) * zoom, HEIGHT / 2 + (y - camera[1]) * zoom
        pose = pose_at(act, drawn, blinks)
        high = rise + pose.bob * act.size
        pose = replace(pose, bob=0.0)
        if rig.shadow and act.shadow:
            self._shadow(canvas, scene, px, py, rig.shadow * act.size * zoom / (1 + high / 60), 90 / (1 + high / 40))
        unit = act.size * zoom
        best = act.size * max(k[3] for k in shot.camera)
        image, box, scale = self._sprite(rig, pose, best, scene, (px, py - high * zoom), unit, face)
        if image is None:
            return
        k = unit / scale
        left = box[0] if face > 0 else -box[2]
        ax, ay = px + left * unit, py - high * zoom + box[1] * unit
        if face < 0:
            image = image[:, ::-1]
        h, w = image.shape[:2]
        x0, y0 = max(math.floor(ax), 0), max(math.floor(ay), 0)
        x1, y1 = min(math.ceil(ax + w * k) + 1, WIDTH), min(math.ceil(ay + h * k) + 1, HEIGHT)
        if x1 <= x0 or y1 <= y0:
            return
        move = np.array([[k, 0, ax - x0], [0, k, ay - y0]], np.float32)
        part = cv2.warpAffine(image, move, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        rows, columns = slice(y0, y1), slice(x0, x1)
        _over(canvas, part, (rows, columns))
        _hide(seen, part[:, :, 3], x0, y0)
        if rig.tracked:
            seen[rig.id] = (rows, columns, part[:, :, 3].copy())

    def _sprite(
        self, rig: Rig, pose: Pose, best: float, scene: Scene | None, foot: tuple[float, float], unit: float, face: int
    ) -> tuple[np.ndarray | None, svg.Box, float]:
        """A drawing of the pose, its box in the rig's units, and its pixels a unit; large ones only where visible."""
        box, scale = rig.box, math.ceil(best * 12.5) / 12.5
        if (box[2] - box[0]) * scale > 420 or (box[3] - box[1]) * scale > 420:
            left, right = (-foot[0]) / unit, (WIDTH - foot[0]) / unit
            if face < 0:
                left, right = -right, -left
            top, bottom = -foot[1] / unit, (HEIGHT - foot[1]) / unit
            grid = MARGIN / best / 4
            box = (
                max(box[0], math.floor(left / grid) * grid),
                max(box[1], math.floor(top / grid) * grid),
                min(box[2], math.ceil(right / grid) * grid),
                min(box[3], math.ceil(bottom / grid) * grid),
            )
            if box[2] <= box[0] or box[3] <= box[1]:
                return None, box, scale
        tint = scene.tint if scene else (1.0, 1.0, 1.0)
        key = (rig.id, pose, scale, box, tint)
        if key in self.sprites:
            self.sprites.move_to_end(key)
        else:
            image = svg.raster(rig.draw(pose), box, scale, rig.defs)
            if tint != (1.0, 1.0, 1.0) and pose.glow <= 1:
                red, green, blue = tint
                image = np.clip(image * np.array([blue, green, red, 1.0], np.float32), 0, 255)
                image = np.minimum(image, image[:, :, 3:]).astype(np.uint8)
            self.sprites[key] = image
            if len(self.sprites) > 160:
                self.sprites.popitem(last=False)
        return self.sprites[key], box, scale

    def _shadow(self, canvas: np.ndarray, scene: Scene | None, x: float, y: float, half: float, dark: float) -> None:
        w, h = max(int(half), 2), max(int(half * 0.26), 1)
        x0, y0, x1, y1 = max(int(x) - w, 0), max(int(y) - h, 0), min(int(x) + w, WIDTH), min(int(y) + h, HEIGHT)
        if x1 <= x0 or y1 <= y0:
            return
        yy, xx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        alpha = np.clip(1.15 - ((xx - x) / w) ** 2 - ((yy - y) / h) ** 2, 0, 1) * (dark / 255)
        shade = (scene.shade if scene else "#000000").lstrip("#")
        ink = np.array([int(shade[i : i + 2], 16) for i in (4, 2, 0)], np.float32)
        area = canvas[y0:y1, x0:x1, :3]
        area[:] = (area * (1 - alpha[..., None]) + ink * alpha[..., None]).astype(np.uint8)

    def _card(self, canvas: np.ndarray, index: int, shot: Shot, drawn: float, seen: Seen) -> None:
        if index not in self.cards:
            self.cards[index] = effects.letters(shot.card or "", self.film.ink, self.film.halo)
        for image, x, y, start in self.cards[index]:
            t = drawn - start
            if t < 0:
                continue
            grow = 1 + 0.5 * math.exp(-7 * t) * math.cos(14 * t) - math.exp(-16 * t)
            h, w = image.shape[:2]
            hover = 2.5 * math.sin(2 * math.pi * drawn / 2.4 + x / 60)
            ax, ay = x - w * grow / 2, y - h * grow / 2 + hover
            move = np.array([[grow, 0, ax], [0, grow, ay]], np.float32)
            letter = cv2.warpAffine(image, move, (WIDTH, HEIGHT))
            _over(canvas, letter, (slice(0, HEIGHT), slice(0, WIDTH)))
            _hide(seen, letter[:, :, 3], 0, 0)


def _over(canvas: np.ndarray, image: np.ndarray, where: tuple[slice, slice]) -> None:
    """Lay a premultiplied image over a part of the canvas, in place."""
    area = canvas[where]
    alpha = cv2.extractChannel(image, 3)
    if alpha.min() == 255:
        canvas[where] = image
        return
    through = cv2.cvtColor(cv2.bitwise_not(alpha), cv2.COLOR_GRAY2BGRA)
    canvas[where] = cv2.add(cv2.multiply(area, through, scale=1 / 255), image)


def _hide(seen: Seen, alpha: np.ndarray, x0: int, y0: int) -> None:
    """Take away from every mask what an image painted at (x0, y0) covers."""
    y1, x1 = y0 + alpha.shape[0], x0 + alpha.shape[1]
    for rows, columns, mask in seen.values():
        top, bottom = max(rows.start, y0), min(rows.stop, y1)
        left, right = max(columns.start, x0), min(columns.stop, x1)
        if top >= bottom or left >= right:
            continue
        own = mask[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
        cover = alpha[top - y0 : bottom - y0, left - x0 : right - x0]
        own[:] = cv2.multiply(own, 255 - cover, scale=1 / 255)
