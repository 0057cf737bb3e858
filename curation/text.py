"""Where text stands in a picture: the text detector of rapidocr (PP-OCRv6, small), which ships its weights in its wheel.

The detector is a network with a differentiable binarisation head (Liao et al., 2020, arXiv 1911.08947). It runs alone, without
its classifier and recogniser, on onnxruntime with one thread, so that the same picture gives the same polygons on every run.
It finds writing of any script and does not read it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from animeshooter_dataset import DataError

LONG_SIDE = 480
"""Pixels of the long side at which the detector looks: subtitles of usual size are 8 to 25 pixels high there, and 640 finds no
more of them in twice the time."""
MAX_HEIGHT, MAX_SQUARE = 0.3, 0.15
"""Share of the picture's height up to which a line of text, and one not wider than high, is believed to be one: this network
takes faces, stars and whole figures of cartoons for enormous letters."""


def find_text(image: np.ndarray) -> list[np.ndarray]:
    """Finds lines of text in a picture.

    The picture is scaled to a long side of :data:`LONG_SIDE` first, also when it is smaller: letters of a small film are found
    as well as those of a large one.

    Args:
        image: RGB, uint8, shape (height, width, 3).

    Returns:
        One polygon a line (or a part of one, where its words stand far apart): float64 of shape (4, 2), x and y in pixels of
        ``image``, clockwise from the top left corner. From top to bottom; empty when there is no text.

    Raises:
        DataError: the detector's weights are not where rapidocr's wheel puts them.
    """
    height, width = image.shape[:2]
    scale = LONG_SIDE / max(height, width)
    # The network wants multiples of 32; resizing here, by areas, keeps thin strokes that rapidocr's own resize would lose
    size = tuple(max(32, round(side * scale / 32) * 32) for side in (width, height))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    boxes = _detector()(cv2.cvtColor(small, cv2.COLOR_RGB2BGR)).boxes
    if boxes is None:
        return []
    factor = np.array([width / size[0], height / size[1]])
    polygons = [np.asarray(box, np.float64) * factor for box in boxes]
    return [polygon for polygon in polygons if _is_line(polygon, min(height, width))]


def _is_line(polygon: np.ndarray, short_side: int) -> bool:
    sides = np.linalg.norm(polygon[0] - polygon[1]), np.linalg.norm(polygon[0] - polygon[3])
    limit = MAX_HEIGHT if max(sides) >= 1.5 * min(sides) else MAX_SQUARE
    return bool(min(sides) <= limit * short_side)


def text_cover(polygons: Sequence[np.ndarray], height: int, width: int) -> float:
    """The share of a picture that lies under text.

    Args:
        polygons: what :func:`find_text` found, in pixels of the picture.
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        Share of pixels under at least one polygon, 0 to 1.
    """
    return float(text_mask(polygons, height, width).mean())


def text_mask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Which pixels lie under text.

    Args:
        polygons: what :func:`find_text` found, in pixels of the picture.
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        bool of shape (height, width): the union of the polygons.
    """
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:  # one by one: together, where two overlap would count as outside
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask.astype(bool)


@cache
def _detector() -> Any:
    """The detector of rapidocr with the weights of its wheel, loaded once a process."""
    log = logging.getLogger("RapidOCR")
    silent, log.disabled = log.disabled, True  # it announces its engine and its file on the console
    try:
        import rapidocr
        from rapidocr.ch_ppocr_det import TextDetector
        from rapidocr.utils.parse_parameters import ParseParams

        home = Path(rapidocr.__file__).parent
        config = ParseParams.load(home / "config.yaml")
        weights = sorted((home / "models").glob("*det*.onnx"))
        if not weights:
            raise DataError(f"{home / 'models'}: holds no text detector; install rapidocr again, its wheel carries one")
        engine = config.EngineConfig[config.Det.engine_type.value]
        engine.update(intra_op_num_threads=1, inter_op_num_threads=1)
        config.Det.update(model_path=str(weights[0]), engine_cfg=engine, limit_type="max", limit_side_len=LONG_SIDE)
        return TextDetector(config.Det)
    finally:
        log.disabled = silent
