"""Training steps of stages 2 to 4: seconds, model-FLOP utilization (MFU), memory; beside diffusers' CogVideoX LoRA step.

On a GPU: the ``paper`` sizes with random weights, made on it in half precision, clips of 49 x 480 x 720. Without a GPU the same
code runs at the tiny size; real size is then not measured, and the table and the JSON say so. Every way of a stage runs the
trainer's own step (forward, backward, clipping, AdamW) on one batch of made-up clips: with latents from a cache or encoded,
with activations kept or computed again, with the transformer's blocks compiled or not.

The peer is the step of diffusers' ``train_cogvideox_lora`` example, written from its documentation with diffusers' classes: the
same transformer and LoRA, the latents encoded beforehand (as that script does), the loss on the denoised latents weighted by
1 / (1 - alpha). It differs from ours in what makes the condition: T5 reads the prompts at each step (as that script does, row
"as its script") or beforehand (row "features cached"), while stage 4 here reads the story with the MLLM at each step.

Run: python -m benchmarks.training [--json benchmarks/results/training.json] [--seconds 540] [--precision bf16]
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.training_model import BatchOf, Trial, batch_of, random_model, reading_of, trial_config
from recipes import lora, multi_shot, single_shot
from recipes.compiling import compile_blocks
from recipes.flops import flops_of, peak_flops, text_encoder_part, transformer_part
from recipes.sizes import sizes_of
from recipes.stage import Stage, StageModule
from recipes.stepping import Guard, take_step

STAGES = {one.STAGE.name: one.STAGE for one in (single_shot, multi_shot, lora)}
WARM_UP = 2
NOT_MEASURED = "no GPU here: tiny sizes on the CPU; real size is NOT measured, and these figures say nothing of it"


@dataclass(frozen=True)
class Way:
    """A way to run a step."""

    cached: bool
    checkpointing: bool
    compiled: bool = False

    def __str__(self) -> str:
        words = ["latents cached" if self.cached else "clips encoded"]
        words.append("checkpointing" if self.checkpointing else "activations kept")
        return ", ".join([*words, *(["compiled"] if self.compiled else [])])


WAYS = (Way(True, True), Way(True, True, True), Way(True, False), Way(True, False, True), Way(False, True), Way(False, False))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there, after every one of them")
    parser.add_argument("--seconds", type=float, default=540, help="after which no further way is begun (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="measured, of each way, after two of warm-up (%(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp16"), default="bf16", help="on a GPU (%(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["multi_shot", "single_shot", "lora"])
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled ways")
    args = parser.parse_args()
    found = measure(args)
    print(table(found))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures; written to ``args.json`` as they come."""
    began = time.perf_counter()
    trial = Trial.here(args.precision)
    found: dict[str, Any] = about(trial)
    gen = random_model(trial)
    found["made_in_s"] = round(time.perf_counter() - began, 1)
    for label, work in works(gen, trial, args):
        if time.perf_counter() - began > args.seconds:
            found["rows"].append(label | {"error": "not begun: the time was up"})
        else:
            found["rows"].append(label | _guarded(work))
        row = found["rows"][-1]
        print(f"{row['stage']:<14}{row['way']:<46}{row.get('error') or _seconds(row)}", flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


Work = Callable[[], dict[str, Any]]


def works(gen: Any, trial: Trial, args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Work]]:
    """Everything to be measured, in turn."""
    ways = [way for way in WAYS if not (way.compiled and args.no_compile)]
    for name in args.stages:
        for way in ways:
            label = {"stage": name, "way": str(way), **dataclasses.asdict(way)}
            yield label, lambda name=name, way=way: ours(gen, STAGES[name], trial, way, args.steps)  # type: ignore[misc]
    for again in (True, False):
        for encoded in (True, False):
            kept = "checkpointing" if again else "activations kept"
            label = {"stage": "diffusers", "way": f"{'as its script' if encoded else 'features cached'}, {kept}"}
            label |= {"checkpointing": again}
            yield label, lambda again=again, encoded=encoded: peer(gen, trial, again, encoded, args.steps)  # type: ignore[misc]


def about(trial: Trial) -> dict[str, Any]:
    """What was measured on what."""
    device = torch.cuda.get_device_name() if trial.real else platform.processor() or platform.machine()
    names = ("torch", "diffusers", "transformers", "accelerate", "peft")
    return {
        "real_size": trial.real,
        "note": "random weights" if trial.real else NOT_MEASURED,
        "device": device,
        "precision": trial.precision,
        "preset": trial.preset,
        "peak_flops": peak_flops(device, trial.precision) if trial.real else None,
        "versions": {name: version(name) for name in names},
        "warm_up": WARM_UP,
        "rows": [],
    }


# ---- ours ----


def ours(gen: Any, stage: Stage, trial: Trial, way: Way, steps: int) -> dict[str, Any]:
    """A stage's own step, as the trainer takes it."""
    from accelerate import Accelerator

    config = trial_config(stage, trial, way.checkpointing)
    gen.set_trainable(stage.name)
    for parameter in gen.trainable_parameters(stage.name):
        parameter.data = parameter.data.float()
    accelerator = Accelerator(cpu=not trial.real, mixed_precision=trial.precision)
    optimizer = torch.optim.AdamW(gen.trainable_parameters(stage.name), lr=config.train.learning_rate, fused=trial.real)
    module = StageModule(gen, stage, config)
    with _state(gen, way.checkpointing, way.compiled, accelerator.device):
        model, optimizer = accelerator.prepare(module, optimizer)
        model.train()
        this: Any = SimpleNamespace(
            stage=stage, config=config, accelerator=accelerator, module=module, model=model, optimizer=optimizer
        )
        this.main, this.step, this.left_out, this.say = True, 0, 0, print
        guard = Guard(this)
        batch = batch_of(gen, config, cached=way.cached)
        flops = flops_of(stage, gen, config, reading=reading_of(gen), without=("vae", "text_encoder") if way.cached else ())
        losses: list[float] = []
        figures = timed(lambda: losses.append(take_step(this, [batch], guard).loss), steps, trial)
        accelerator.free_memory()
    clips = config.train.global_batch * sizes_of(stage, gen, config).shots
    return figured(figures, flops.model, flops.hardware, trial) | {"clips": clips, "loss": losses[-1]}


class _state:
    """The model with activations computed again or not, blocks compiled or not; as it was afterwards."""

    def __init__(self, gen: Any, checkpointing: bool, compiled: bool, device: torch.device) -> None:
        self.gen, self.checkpointing, self.compiled, self.device = gen, checkpointing, compiled, device

    def __enter__(self) -> None:
        gen = self.gen
        if self.checkpointing:
            gen.enable_gradient_checkpointing()
        else:
            gen.transformer.disable_gradient_checkpointing()
            gen.mllm.activation_checkpointing_disable()
        if self.compiled:
            compile_blocks(gen, self.device)

    def __exit__(self, *_: object) -> None:
        for block in self.gen.backbone.blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()
        for parameter in self.gen.parameters():
            parameter.grad = None


# ---- diffusers' ----


def peer(gen: Any, trial: Trial, checkpointing: bool, encoded: bool, steps: int) -> dict[str, Any]:
    """The step of diffusers' CogVideoX LoRA training, over as many clips as stage 4 reads."""
    from accelerate import Accelerator
    from diffusers import CogVideoXDPMScheduler

    config = trial_config(lora.STAGE, trial, checkpointing)
    gen.set_trainable("lora")
    trained = gen.trainable_parameters("lora")
    for parameter in trained:
        parameter.data = parameter.data.float()
    accelerator = Accelerator(cpu=not trial.real, mixed_precision=trial.precision)
    scheduler = CogVideoXDPMScheduler.from_config(gen.scheduler.config)
    optimizer = torch.optim.AdamW(trained, lr=config.train.learning_rate, fused=trial.real)
    with _state(gen, checkpointing, False, accelerator.device):
        transformer, optimizer = accelerator.prepare(gen.transformer, optimizer)
        transformer.train()
        made = batch_of(gen, config, cached=True)
        encoder = trial.text_encoder.to(accelerator.device)
        prompts = _tokens(gen, made).to(accelerator.device)
        with torch.no_grad():
            features = encoder(prompts)[0]
        step = _peer_step(accelerator, transformer, optimizer, scheduler, trained, _latents(gen, made))
        run = (lambda: step(_encode(encoder, prompts))) if encoded else (lambda: step(features))
        figures = timed(run, steps, trial)
        gen.transformer = accelerator.unwrap_model(transformer, keep_fp32_wrapper=False)
        trial.text_encoder.to("cpu")
        accelerator.free_memory()
        sizes = sizes_of(lora.STAGE, gen, config)
        one = transformer_part(gen, sizes.video[0], sizes.condition, False)
        more = text_encoder_part(SimpleNamespace(text_encoder=trial.text_encoder), sizes.condition).forward if encoded else 0.0  # type: ignore[arg-type]
    clips = sizes.shots * config.train.global_batch
    model = clips * (one.forward + one.backward + more)
    return figured(figures, model, model + clips * one.recomputed, trial) | {"clips": clips}


@torch.no_grad()
def _encode(encoder: Any, prompts: torch.Tensor) -> torch.Tensor:
    return encoder(prompts)[0]


def _tokens(gen: Any, made: BatchOf) -> torch.Tensor:
    """Prompts of all clips, padded as CogVideoX's pipeline does."""
    texts = [text for sample in made.samples for text in sample.descriptive]
    length = gen.backbone.condition_length
    told = gen.text_tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return told["input_ids"]


def _latents(gen: Any, made: BatchOf) -> torch.Tensor:
    clips = [one["latents"][0] for sample in made.samples for one in sample.features or ()]
    return gen.backbone.scale(torch.stack(clips).to(gen.transformer.device))


def _peer_step(
    accelerator: Any, transformer: Any, optimizer: Any, scheduler: Any, trained: list[Any], latents: torch.Tensor
) -> Callable[[torch.Tensor], None]:
    """Noise, prediction, weighted error of the denoised latents, backward, clipping, update."""
    alphas = scheduler.alphas_cumprod.to(latents.device)

    def step(features: torch.Tensor) -> None:
        noise = torch.randn_like(latents)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = scheduler.add_noise(latents, noise, times)
        output = transformer(
            hidden_states=noisy, encoder_hidden_states=features, timestep=times, image_rotary_emb=None, return_dict=False
        )[0]
        denoised = scheduler.get_velocity(output, noisy, times)
        weights = (1 / (1 - alphas[times]))[:, None, None, None, None]
        loss = (weights * (denoised - latents) ** 2).flatten(1).mean(1).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


# ---- the clock ----


def timed(step: Callable[[], Any], steps: int, trial: Trial) -> dict[str, Any]:
    """Median seconds of a step after the warm-up, and the peak of allocated memory."""
    for _ in range(WARM_UP):
        step()
    if trial.real:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        if trial.real:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 1e9 if trial.real else None
    return {"seconds": median(seconds), "all_seconds": seconds, "peak_gb": peak}


def figured(figures: dict[str, Any], model: float, hardware: float, trial: Trial) -> dict[str, Any]:
    """With the arithmetic of the step, and its share of the published peak."""
    peak = peak_flops(torch.cuda.get_device_name(), trial.precision) if trial.real else None
    rate = model / figures["seconds"]
    return figures | {"model_flops": model, "hardware_flops": hardware, "mfu": rate / peak if peak else None}


def _guarded(work: Work) -> dict[str, Any]:
    """What a way comes to, or why it does not run."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# ---- as text ----


def _seconds(row: dict[str, Any]) -> str:
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
    memory = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
    clip = row["seconds"] / row["clips"]
    return f"{row['seconds']:>10.4f} s{clip:>11.4f} s{row['model_flops'] / 1e12:>11.4g}{mfu:>8}{memory:>9}"


def table(found: dict[str, Any]) -> str:
    """All rows, ours and the peer's."""
    head = f"{'stage':<14}{'way':<46}{'a step':>12}{'a clip':>13}{'TFLOP':>11}{'MFU':>8}{'GB':>9}"
    lines = ["", f"{found['preset']} sizes on {found['device']}, {found['precision']}", head]
    lines += [f"{row['stage']:<14}{row['way']:<46}{row.get('error') or _seconds(row)}" for row in found["rows"]]
    return "\n".join([*lines, "", found["note"]])


if __name__ == "__main__":
    main()
