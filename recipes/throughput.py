"""How fast a run is and how much memory it takes, as the log tells it of every step."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from animeshooter_streams import Batch
from streams.order import tokens_of

if TYPE_CHECKING:
    from recipes.running import Run


class Meter:
    """Measures steps from the end of one to the end of the next, waits for data included.

    Args:
        this: the run; its model is laid out, and its step is the first that is measured.
    """

    def __init__(self, this: Run) -> None:
        self.this, self.world = this, this.accelerator.num_processes
        self._began = time.perf_counter()
        self._work: dict[tuple[Any, ...], tuple[int, int, float | None]] = {}
        self._peak = self._peak_flops()

    def resume(self) -> None:
        """Leave out of the next step what was done since the last one: measuring and sampling are no training."""
        self._began = time.perf_counter()

    def here(self, waited: float) -> dict[str, float]:
        """What this process tells the others before a step: the seconds it waited for data, and its memory in bytes."""
        return {"wait": waited, "memory": peak_memory(self.this.accelerator.device)}

    def read(self, batch: Batch, told: list[dict[str, Any]]) -> dict[str, Any]:
        """What the log says of the step that ends now.

        Args:
            batch: a micro-batch of it; all of a step have the same shape.
            told: by each process before the step: ``keys`` of its samples, and what :meth:`here` gave.

        Returns:
            ``seconds``, ``wait`` (the longest wait for data of a process), ``samples_per_second``, ``frames_per_second``,
            ``tokens_per_second`` (latent tokens of the video transformer), ``mfu`` (left out where the device's peak is not
            known), ``memory_gib`` (the most that a process has taken so far: of GPU memory where there is a GPU).
        """
        seconds, self._began = time.perf_counter() - self._began, time.perf_counter()
        samples = sum(len(one["keys"]) for one in told)
        frames, tokens, flops = self._of(batch, samples)
        line: dict[str, Any] = {"seconds": round(seconds, 4), "wait": round(max(one["wait"] for one in told), 4)}
        for name, count in (("samples", samples), ("frames", frames), ("tokens", tokens)):
            line[f"{name}_per_second"] = rounded(count / seconds)
        if flops is not None and self._peak is not None:
            line["mfu"] = rounded(flops / (seconds * self.world * self._peak))
        most = max(peak_memory(self.this.accelerator.device), *(one["memory"] for one in told))
        line["memory_gib"] = rounded(most / 2**30)
        return line

    def _of(self, batch: Batch, samples: int) -> tuple[int, int, float | None]:
        """Frames, latent tokens and FLOPs of a global step of such batches."""
        shots, clip = len(batch.samples[0].keys), batch.clip
        known = (shots, samples, clip)
        if known not in self._work:
            tokens = samples * tokens_of(clip, shots)
            self._work[known] = (samples * shots * clip.frames, tokens, self._flops(shots, samples, clip))
        return self._work[known]

    def _flops(self, shots: int, samples: int, clip: Any) -> float | None:
        if self._peak is None:
            return None
        from recipes.flops import flops_of
        from recipes.parts import laid_out_parts

        config = self.this.config
        size = dataclasses.replace(config.data.clip, frames=clip.frames, height=clip.height, width=clip.width, fps=clip.fps)
        data = dataclasses.replace(config.data, clip=size, clips=None, shots=shots)
        train = dataclasses.replace(config.train, global_batch=samples, batch_tokens=None)
        config = dataclasses.replace(config, data=data, train=train)
        gen = self.this.module.gen
        return float(flops_of(self.this.stage, gen, config, without=laid_out_parts(gen)).model)

    def _peak_flops(self) -> float | None:
        """FLOP/s that one device could do."""
        if self.this.accelerator.device.type != "cuda":
            return None
        from recipes.flops import peak_flops

        return peak_flops(torch.cuda.get_device_name(self.this.accelerator.device), self.this.accelerator.mixed_precision)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that the process took where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
