"""What of the stack works on this machine: each part is really used, not only looked for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
"""Python that the project asks for."""
NEEDED_SPACE = 5 * 10**9
"""Bytes below which the demo's folder is said to be small: films, dataset and checkpoints of the tiny preset take about one."""
PATIENCE = 60.0
"""Seconds after which a trial in a process of its own is given up."""
HUB_PATIENCE = 4.0
State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was tried.
        state: ok, missing (it is not there) or broken (it is there and does not work).
        said: what was found; where something is missing, what for and the mend; where broken, the error.
        needed: whether the demo needs it.
    """

    name: str
    state: State
    said: str
    needed: bool = False

    def line(self) -> str:
        """For a terminal."""
        return f"{self.state:<8} {self.name:<26} {self.said}{' (needed)' if self.needed and self.state != 'ok' else ''}"


def examine(folder: Path, *, network: bool = True) -> list[Finding]:
    """Try everything.

    Args:
        folder: where one means to work.
        network: whether to ask the Hub.
    """
    with ThreadPoolExecutor(4) as pool:  # those that wait for processes or for the network wait together
        later = [pool.submit(_tried, *check) for check in _slow(network)]
        found = [python(), *packages(ROOT)]
        found += [_tried(*check) for check in _quick(folder)]
        return found + [one.result() for one in later]


def works(findings: list[Finding]) -> bool:
    """Whether all that the demo needs is ok."""
    return all(one.state == "ok" for one in findings if one.needed)


def report(findings: list[Finding], as_json: bool) -> str:
    """The findings as text or JSON."""
    if as_json:
        return json.dumps({"works": works(findings), "findings": [asdict(one) for one in findings]}, indent=2)
    bad = [one.name for one in findings if one.needed and one.state != "ok"]
    last = "the demo can run" if not bad else f"the demo cannot run: {', '.join(bad)}"
    return "\n".join([*(one.line() for one in findings), "", last])


Check = tuple[str, Callable[[], Finding], bool]


def _quick(folder: Path) -> list[Check]:
    return [
        ("devices", devices, True),
        ("half precision", half_precision, False),
        ("H.264 and AAC", codecs, True),
        ("working folder", lambda: disk(folder), True),
        ("HF_HOME", hub_folder, False),
        ("wandb", tracker, False),
    ]


def _slow(network: bool) -> list[Check]:
    checks: list[Check] = [
        ("torch.compile", compiler, False),
        ("two processes", two_processes, False),
        ("torchcodec", torchcodec, False),
        ("deepspeed", deepspeed, False),
    ]
    return [*checks, ("Hugging Face Hub", hub, False)] if network else checks


def _tried(name: str, check: Callable[[], Finding], needed: bool) -> Finding:
    """What a check finds; whatever it raises is a finding too."""
    try:
        return check()
    except Exception as error:
        return Finding(name, "broken", _short(f"{type(error).__name__}: {error}"), needed)


def _short(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return (lines[-1] if lines else "no word of why")[:300]


# ---- Python and packages ----


def python() -> Finding:
    """Whether this Python is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST:
        return Finding("Python", "broken", f"{version}: use 3.11 or newer, in a new environment", True)
    return Finding("Python", "ok", version, True)


def packages(root: Path) -> Iterator[Finding]:
    """Each package the project names, its version beside the pinned one; those of extras are not needed.

    Args:
        root: folder of ``pyproject.toml`` and ``constraints.txt``; without them, what the installed project asks for counts.
    """
    pins = _pins(root / "constraints.txt")
    for text, extra in _requirements(root / "pyproject.toml"):
        name = _normal(re.split(r"[\s<>=!~\[;@]", text, maxsplit=1)[0])
        label = name if extra is None else f"{name} [{extra}]"
        yield _package(name, label, text, pins.get(name), extra)


def _package(name: str, label: str, text: str, pin: str | None, extra: str | None) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        mend = (
            f"pip install '{text.strip()}'" if extra is None else f"for the extra {extra}: pip install 'animeshooter[{extra}]'"
        )
        return Finding(label, "missing", mend, extra is None)
    if not _satisfies(text, version):
        return Finding(
            label, "broken", f"{version}, but {text.strip()} is asked for: pip install '{text.strip()}'", extra is None
        )
    said = version if pin in (None, version.partition("+")[0]) else f"{version} (tested with {pin})"
    return Finding(label, "ok", said, extra is None)


def _satisfies(text: str, version: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # nothing of ours asks for it; where it lacks, so do many others, and they are named
        return True
    return Requirement(text).specifier.contains(version, prereleases=True)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    pairs = (line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {_normal(name): version.strip() for name, version in pairs}


_EXTRAS_SKIPPED = ("dev",)


def _requirements(path: Path) -> Iterator[tuple[str, str | None]]:
    """Requirements with the extra they belong to."""
    if path.is_file():
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        yield from ((text, None) for text in project["dependencies"])
        for extra, texts in project.get("optional-dependencies", {}).items():
            if extra not in _EXTRAS_SKIPPED:
                yield from ((text, extra) for text in texts)
        return
    for text in importlib.metadata.requires("animeshooter") or ():
        found = re.search(r"extra\s*==\s*['\"]([^'\"]+)", text)
        if found is None or found[1] not in _EXTRAS_SKIPPED:
            yield text.split(";")[0], None if found is None else found[1]


# ---- arithmetic ----


def devices() -> Finding:
    """What torch computes on: a product on every device is compared with the CPU's."""
    import torch

    from recipes.gpus import peak_flops

    a = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) / 4096
    expected, found = a @ a, [f"CPU ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        with torch.cuda.device(index):
            there = a.cuda()
            apart = (there @ there).cpu().sub(expected).abs().max().item()
            free, total = torch.cuda.mem_get_info()
        if apart > 1e-3:
            return Finding("devices", "broken", f"cuda:{index} multiplies wrongly (off by {apart:.2g})", True)
        name = torch.cuda.get_device_name(index)
        peak = peak_flops(name, "bf16")
        said = f", {peak / 1e12:.0f} TFLOP/s by its data sheet" if peak else ""
        found.append(f"cuda:{index} {name} ({free / 1e9:.0f} of {total / 1e9:.0f} GB free{said})")
    if len(found) == 1:
        found.append("no GPU: the tiny preset trains, the paper's sizes do not")
    return Finding("devices", "ok", "; ".join(found), True)


def half_precision() -> Finding:
    """Which half precisions a product and its gradient work in, on the first device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    worked: list[str] = []
    failed: list[str] = []
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        try:
            x = torch.ones(16, 16, device=device, dtype=dtype, requires_grad=True)
            (x @ x).sum().backward()
            exact = x.grad is not None and bool((x.grad == 32).all())
            (worked if exact else failed).append(name)
        except RuntimeError as error:
            failed.append(f"{name} ({_short(str(error))})")
    native = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    said = f"{' and '.join(worked)} on {device}" + ("" if native else "; bf16 is emulated and slow, use fp16")
    if failed:
        return Finding("half precision", "broken", f"{', '.join(failed)} on {device}; train with train.precision=no")
    return Finding("half precision", "ok", said)


_COMPILED = """
import torch
f = torch.compile(lambda x: torch.nn.functional.gelu(x * 2 + 1).sum())
x = torch.ones(64, device="cuda" if torch.cuda.is_available() else "cpu")
assert abs(f(x).item() - 64 * 2.9960) < 0.1, f(x).item()
"""


def compiler() -> Finding:
    """Whether torch.compile has the compiler it needs: a small function is compiled and run."""
    found = _run([sys.executable, "-c", _COMPILED], "torch.compile")
    if found.state == "ok":
        return Finding("torch.compile", "ok", "compiles and runs")
    if not (shutil.which("g++") or shutil.which("clang++")):
        said = "no C++ compiler: train.compile=true and DeepSpeed's own kernels need one; apt install g++"
        return Finding("torch.compile", "missing", said)
    return Finding("torch.compile", "broken", found.said)


_TWO = """
import os, sys, torch, torch.distributed as dist
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
x = torch.full((4,), float(rank + 1)); dist.all_reduce(x)
assert x.tolist() == [3.0] * 4, x
dist.destroy_process_group()
"""


def two_processes() -> Finding:
    """Two processes that add up a tensor over gloo, as training on several processes does."""
    name = "two processes"
    with tempfile.TemporaryDirectory(prefix="animeshooter-doctor-") as folder:
        store = str(Path(folder) / "store")
        both = [
            subprocess.Popen([sys.executable, "-c", _TWO, str(rank), store], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for rank in range(2)
        ]
        try:
            errors = [one.communicate(timeout=PATIENCE)[1] for one in both]
        except subprocess.TimeoutExpired:
            return Finding(name, "broken", f"gloo: no answer in {PATIENCE:.0f} s; see which interface GLOO_SOCKET_IFNAME names")
        finally:
            for one in both:
                one.kill()
    failed = next((text for one, text in zip(both, errors) if one.returncode), None)
    if failed is not None:
        return Finding(name, "broken", f"gloo: {_short(failed.decode(errors='replace'))}")
    return Finding(name, "ok", "gloo adds up over two processes")


def _run(command: list[str], name: str) -> Finding:
    """A trial in a process of its own."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return Finding(name, "broken", f"no end after {PATIENCE:.0f} s")
    return Finding(name, "broken", _short(done.stderr)) if done.returncode else Finding(name, "ok", done.stdout.strip())


# ---- media ----


def codecs() -> Finding:
    """A second of picture and sound, encoded and decoded by PyAV's own FFmpeg."""
    name = "H.264 and AAC"
    try:
        import av
    except ImportError:
        return Finding(name, "missing", "clips are read and written with PyAV: pip install av", True)
    sent, file = 8, io.BytesIO()
    _encode(av, file, sent)
    file.seek(0)
    with av.open(file) as clip:
        pictures = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        clip.seek(0)
        samples = sum(frame.samples for frame in clip.decode(audio=0))
    if len(pictures) != sent or samples < 4000:
        return Finding(name, "broken", f"of {sent} frames {len(pictures)} came back, and {samples} samples of sound", True)
    levels = [picture.mean() for picture in pictures]
    if any(abs(level - 25 * place) > 12 for place, level in enumerate(levels)):
        return Finding(name, "broken", f"frames come back in other grey levels: {[round(one) for one in levels]}", True)
    return Finding(name, "ok", f"PyAV {av.__version__}: {sent} frames and {samples} samples there and back", True)


def _encode(av: Any, file: io.BytesIO, frames: int) -> None:
    import numpy as np

    with av.open(file, "w", format="mp4") as clip:
        picture, sound = clip.add_stream("libx264", rate=8), clip.add_stream("aac", rate=16000)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        for place in range(frames):
            grey = np.full((64, 64, 3), 25 * place, np.uint8)
            clip.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        wave = np.sin(np.arange(16000, dtype=np.float32) / 20)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.rate = 16000
        clip.mux(sound.encode(frame))
        clip.mux([*picture.encode(), *sound.encode()])


def torchcodec() -> Finding:
    """Whether torchcodec, with which ``datasets`` decodes videos, finds an FFmpeg."""
    if importlib.util.find_spec("torchcodec") is None:
        return Finding(
            "torchcodec", "missing", "lets datasets decode videos; else .decode(False): pip install 'animeshooter[torchcodec]'"
        )
    found = _run([sys.executable, "-c", "from torchcodec.decoders import VideoDecoder"], "torchcodec")
    if found.state == "ok":
        return Finding("torchcodec", "ok", "imports, with the FFmpeg it found")
    return Finding("torchcodec", "broken", f"{found.said}; install FFmpeg 4 to 8 (apt install ffmpeg), or do without")


# ---- launching and tracking ----


def deepspeed() -> Finding:
    """Whether DeepSpeed imports."""
    if importlib.util.find_spec("deepspeed") is None:
        return Finding("deepspeed import", "missing", "for ZeRO-2 and ZeRO-3: pip install 'animeshooter[deepspeed]'")
    found = _run([sys.executable, "-c", "import deepspeed; print(deepspeed.__version__)"], "deepspeed")
    last = found.said.splitlines()[-1] if found.said else ""
    return Finding("deepspeed import", found.state, last)


def tracker() -> Finding:
    """Whether wandb is there, and whether it would send runs or keep them on disk."""
    if importlib.util.find_spec("wandb") is None:
        return Finding("wandb", "missing", "records runs, also offline: pip install 'animeshooter[trackers]'")
    netrc = Path.home() / (".netrc" if os.name != "nt" else "_netrc")
    known = "WANDB_API_KEY" in os.environ
    with contextlib.suppress(OSError):
        known = known or "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled"):
        return Finding("wandb", "ok", f"{mode}, as WANDB_MODE says")
    return Finding(
        "wandb", "ok", "a key is there: runs are sent" if known else "no key: runs stay on disk; `wandb login` would send them"
    )


# ---- disk and network ----


def disk(folder: Path) -> Finding:
    """Space, and the speed of writing 64 MB and reading it again."""
    name, place = "working folder", _standing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            block, began = os.urandom(1 << 20), time.perf_counter()
            for _ in range(64):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = 64 * 1.048576 / max(time.perf_counter() - began, 1e-9)
    except OSError as error:
        return Finding(name, "broken", f"{place}: not writable ({error.strerror}); choose another folder", True)
    free = shutil.disk_usage(place).free
    said = f"{place}: {free / 1e9:.1f} GB free, writes {rate:.0f} MB/s"
    if free < NEEDED_SPACE:
        return Finding(name, "broken", f"{said}; make room, {NEEDED_SPACE / 1e9:.0f} GB at least", True)
    return Finding(name, "ok", f"{said}; the paper's models take 40 GB and their checkpoints as much again", True)


def hub_folder() -> Finding:
    """Whether models and datasets can be kept where the Hub's client puts them."""
    from huggingface_hub import constants

    place = Path(constants.HF_HOME)
    try:
        with tempfile.TemporaryFile(dir=_standing(place)):
            pass
    except OSError as error:
        return Finding("HF_HOME", "broken", f"{place}: not writable ({error.strerror}); set HF_HOME to a folder that is")
    return Finding("HF_HOME", "ok", f"{place}: {shutil.disk_usage(_standing(place)).free / 1e9:.1f} GB free")


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return place


def hub() -> Finding:
    """Whether the Hub answers, or why it need not."""
    import requests
    from huggingface_hub import constants, get_token

    name = "Hugging Face Hub"
    if constants.HF_HUB_OFFLINE:
        return Finding(name, "ok", "offline, as HF_HUB_OFFLINE says: only what is in HF_HOME is found")
    try:
        requests.head(constants.ENDPOINT, timeout=HUB_PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        said = f"{constants.ENDPOINT} does not answer ({type(error).__name__}): pretrained weights must be in HF_HOME already"
        return Finding(name, "missing", f"{said}; set HF_HUB_OFFLINE=1, or HF_ENDPOINT to a mirror")
    return Finding(
        name, "ok", f"{constants.ENDPOINT} answers; {'a token is there' if get_token() else 'no token: public files only'}"
    )
