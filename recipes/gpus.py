"""What common GPUs can do by their makers' data sheets: arithmetic without sparsity, and memory."""

from __future__ import annotations

import re
from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU: TFLOP/s of dense bf16/fp16 matrix units (accumulating in float32) and of plain float32, GB of memory."""

    pattern: str
    half: float
    single: float
    memory: int
    bf16: bool = True


# The names are those of torch.cuda.get_device_name, the first that is found counts; a data sheet that gives "with sparsity"
# is halved. They were compared with copies of the data sheets and with resellers' tables, not with the sheets themselves:
# NVIDIA's of HGX B200, H200, GH200, H100, A100, L40S, L40, L4, A40, A10, V100 (of which the PCIe card is slower), T4, RTX
# A6000 and RTX 6000 Ada; the whitepapers of "Ada" (4090), "Ampere GA102" (3090) and "RTX Blackwell" (5090), in which GeForce
# cards have half the rate where they accumulate in float32; AMD's of MI300X.
GPUS = (
    Gpu(r"\bB200\b", 2250, 75, 180),
    Gpu(r"\bH200 NVL\b", 835.5, 60, 141),
    Gpu(r"\bH200\b", 989.5, 67, 141),
    Gpu(r"\bGH200\b", 989.5, 67, 96),
    Gpu(r"\bH100 PCIe\b", 756.5, 51, 80),
    Gpu(r"\bH100 NVL\b", 835.5, 60, 94),
    Gpu(r"\bH100\b", 989.5, 67, 80),
    Gpu(r"\bA100\b.*\b40GB\b", 312, 19.5, 40),
    Gpu(r"\bA100\b", 312, 19.5, 80),
    Gpu(r"\bL40S\b", 362, 91.6, 48),
    Gpu(r"\bL40\b", 181, 90.5, 48),
    Gpu(r"\bL4\b", 121, 30.3, 24),
    Gpu(r"\bA40\b", 149.7, 37.4, 48),
    Gpu(r"\bA10\b", 125, 31.2, 24),
    Gpu(r"\bRTX A6000\b", 154.8, 38.7, 48),
    Gpu(r"\bRTX 6000 Ada\b", 364.2, 91.1, 48),
    Gpu(r"\bRTX 5090\b(?! (D|Laptop))", 209.5, 104.8, 32),
    Gpu(r"\bRTX 4090\b(?! (D|Laptop))|^4090$", 165.2, 82.6, 24),
    Gpu(r"\bRTX 3090\b(?! Ti)|^3090$", 71, 35.6, 24),
    Gpu(r"\bV100 PCIe\b.*\b16GB\b", 112, 14, 16, bf16=False),
    Gpu(r"\bV100 PCIe\b", 112, 14, 32, bf16=False),
    Gpu(r"\bV100\b.*\b16GB\b", 125, 15.7, 16, bf16=False),
    Gpu(r"\bV100\b", 125, 15.7, 32, bf16=False),
    Gpu(r"\bT4\b", 65, 8.1, 16, bf16=False),
    Gpu(r"\bMI300X\b", 1307.4, 163.4, 192),
)


def gpu(device: str) -> Gpu | None:
    """The GPU that ``device`` names, as torch does or in short ("H100"); None where it is not known, or only a slice of one."""
    name = re.sub(r"[-_]", " ", device)
    if re.search(r"\bMIG\b", name):
        return None
    return next((one for one in GPUS if re.search(one.pattern, name, re.IGNORECASE)), None)


def peak_flops(device: str, precision: str | None) -> float | None:
    """Published dense peak, FLOP/s.

    Args:
        device: name of a GPU.
        precision: of the arithmetic: bf16, fp16 or "no" (float32 without TF32, which PyTorch leaves off).

    Returns:
        None where the GPU is not known or has no such arithmetic; None for a CPU.
    """
    found = gpu(device)
    if found is None or (precision == "bf16" and not found.bf16):
        return None
    return (found.half if precision in ("bf16", "fp16") else found.single) * 1e12


def gpu_memory(device: str) -> int | None:
    """Memory by the data sheet, bytes (a little less is free); None where the GPU is not known."""
    found = gpu(device)
    return None if found is None else found.memory * 10**9
