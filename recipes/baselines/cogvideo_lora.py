"""Baseline CogVideo-LoRA: the same video model, fine-tuned on the same clips, with text alone.

Trains    a LoRA on the video transformer, as stage 4 does; no MLLM, no reference, no earlier shots
From      a preset, or a model of any stage before 4 without the second pathway (they leave the video transformer as it was)
Stream    single shots: the clips of stage 4 (--clips, --video, --character)
Loss      the diffusion loss under the text encoder's features of the caption
Paper     the steps of stage 4; batch 6, for its 2 sequences of 3 shots

Run: accelerate launch recipes/baselines/cogvideo_lora.py --from checkpoints/multi_shot --clips fox --out checkpoints/plain
     python recipes/baselines/cogvideo_lora.py generate checkpoints/plain --script story.json --out stories/plain

``generate`` makes a story shot by shot with diffusers' plain ``CogVideoXPipeline`` and ``load_lora_weights``, nothing of ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from animeshooter_dataset import DataError
from animeshooter_streams import Batch, DrawnStream
from recipes.config import Config
from recipes.encoding import captions_of, encode_captions, encode_clips
from recipes.lora import STAGE as LORA
from recipes.lora import with_clips
from recipes.losses import Losses
from recipes.presets import WAN
from recipes.record import read_record
from recipes.trainer import Stage, main, model_errors, quiet_loading

if TYPE_CHECKING:
    from model import AnimeShooterGen

SHOTS = 3
"""Shots of a sequence of stage 4, which a batch here has as samples of their own."""
PRESETS = {
    name: replace(
        preset,
        data=replace(preset.data, shots=1),
        train=replace(preset.train, global_batch=SHOTS * preset.train.global_batch),
    )
    for name, preset in LORA.presets.items()
    if name not in WAN  # the baseline is CogVideoX's
}


def loss(gen: AnimeShooterGen, batch: Batch, config: Config, generators: list[torch.Generator]) -> Losses:
    """Diffusion loss of every clip under the features of its caption, as plain text-to-video."""
    captions = [caption for (caption,) in captions_of(batch, config.data.caption)]
    condition = encode_captions(gen, batch, captions, [False] * len(captions))
    latents = encode_clips(gen, batch, config, generators)
    return Losses.of_shots(
        [
            gen.diffusion_loss(latents[place], condition[place : place + 1], generator)
            for place, generator in enumerate(generators)
        ]
    )


STAGE = Stage(
    name="cogvideo_lora",
    parents=("preset", "pretrain", "align", "single_shot", "multi_shot"),
    stream=DrawnStream,
    loss=loss,
    presets=PRESETS,
    about=__doc__,
    needs=frozenset({"latents", "text"}),
)


# ---- generating ----


def load_plain(checkpoint: Path) -> Any:
    """Diffusers' own pipeline with the parts of a checkpoint and its LoRA.

    Raises:
        DataError: no checkpoint of this baseline, or not of CogVideoX.
    """
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
    from transformers import AutoTokenizer, T5EncoderModel

    record = read_record(checkpoint)
    if record["stage"] != STAGE.name:
        raise DataError(f"{checkpoint}: a checkpoint of stage {record['stage']}; this generates with those of {STAGE.name}")
    quiet_loading()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    safe: Any = {"use_safetensors": True, "dtype": dtype}
    try:
        pipeline = CogVideoXPipeline(
            tokenizer=AutoTokenizer.from_pretrained(checkpoint / "text_tokenizer", trust_remote_code=False),
            text_encoder=T5EncoderModel.from_pretrained(checkpoint / "text_encoder", **safe),
            vae=AutoencoderKLCogVideoX.from_pretrained(checkpoint / "vae", **safe),
            transformer=CogVideoXTransformer3DModel.from_pretrained(checkpoint / "transformer", **safe),
            scheduler=CogVideoXDDIMScheduler.from_pretrained(checkpoint / "scheduler"),
        )
        pipeline.load_lora_weights(str(checkpoint / "transformer_lora"), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{checkpoint}: not to be loaded by CogVideoXPipeline ({' '.join(str(error).split())})") from None
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False, desc="denoising")
    return pipeline.to(device)


def generate_plain(
    checkpoint: Path,
    script: Path,
    out: Path,
    *,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 6.0,
    fps: float | None = None,
) -> Path:
    """A story of which each shot knows nothing but its own caption.

    Args:
        checkpoint: of this baseline.
        script: as of ``animeshooter generate``.
        out: folder to write; must be empty or not there.
        seed: of the noise.
        steps: denoising steps a shot.
        guidance: strength of classifier-free guidance.
        fps: frames a second; what the checkpoint was trained at by default.

    Returns:
        The path of ``story.mp4``.

    Raises:
        DataError: checkpoint or script cannot be read, or ``out`` is taken.
    """
    from recipes.baselines.stories import refuse_taken, uint8_frames, write_story
    from recipes.generate import clip_of, read_script

    refuse_taken(out)
    pipeline = load_plain(checkpoint)
    record = read_record(checkpoint)
    data = record["config"]["data"]
    captions, clip = read_script(script, data.get("caption", "descriptive")), clip_of(record)
    generator = torch.Generator().manual_seed(seed)
    length = pipeline.transformer.config.max_text_seq_length

    def shots() -> Iterator[np.ndarray]:
        for caption in captions:
            with model_errors():
                video = pipeline(
                    caption,
                    num_frames=clip["frames"],
                    height=clip["height"],
                    width=clip["width"],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=generator,
                    max_sequence_length=length,
                    output_type="np",
                )
            yield uint8_frames(video.frames[0])

    about = {
        "system": "CogVideo-LoRA",
        "checkpoint": {"path": str(checkpoint), **{name: record.get(name) for name in ("stage", "preset", "steps")}},
    }
    settings = {"seed": seed, "steps": steps, "guidance": guidance, "fps": fps or clip["fps"]}
    return write_story(shots(), out, script=script, captions=captions, reference=None, settings=settings, about=about)


def _generate(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="cogvideo_lora.py generate", description="A story with the plain pipeline.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--script", type=Path, required=True, metavar="STORY.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps a shot (%(default)s)")
    parser.add_argument("--guidance", type=float, default=6.0, help="classifier-free guidance (%(default)s)")
    parser.add_argument("--fps", type=float, help="frames a second (as the checkpoint was trained)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        settings = {name: getattr(args, name) for name in ("seed", "steps", "guidance", "fps")}
        print(f"story: {generate_plain(args.checkpoint, args.script, args.out, **settings)}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def baseline_main(argv: list[str] | None = None) -> int:
    """``generate ...`` makes a story; all else trains, as :func:`recipes.lora.lora_main` does."""
    argv = sys.argv[1:] if argv is None else argv
    return _generate(argv[1:]) if argv[:1] == ["generate"] else main(STAGE, with_clips(argv))


if __name__ == "__main__":
    sys.exit(baseline_main())
