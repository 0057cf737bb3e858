"""Pretrained parts from folders or the Hub: what must be there is checked first, and safetensors only are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from model.tokenizer import add_query_tokens

if TYPE_CHECKING:
    import torch

    from model.config import ModelConfig, VideoConfig

# Class of every part by backbone; the first scheduler is what a model with random weights gets.
VIDEO_CLASSES = MappingProxyType(
    {
        "cogvideox": {
            "transformer": "CogVideoXTransformer3DModel",
            "vae": "AutoencoderKLCogVideoX",
            "text_encoder": "T5EncoderModel",
            "scheduler": ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
        },
        "wan": {
            "transformer": "WanTransformer3DModel",
            "vae": "AutoencoderKLWan",
            "text_encoder": "UMT5EncoderModel",
            "scheduler": ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
        },
    }
)
_VIDEO_FOLDERS = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def video_class(kind: str, part: str, name: str | None = None) -> Any:
    """Class of a part of a backbone; ``name`` chooses among the schedulers there are."""
    import diffusers
    import transformers

    known = VIDEO_CLASSES[kind][part]
    chosen = known if isinstance(known, str) else (name or known[0])
    return getattr(transformers if part == "text_encoder" else diffusers, chosen)


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    """What transformers and diffusers say over many lines of a folder or repository they cannot read, in one."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if reason.startswith(f"{source}"):
            raise ValueError(reason) from None
        raise ValueError(f"{source}: cannot be loaded ({reason[:300]})") from error


def load_mllm(config: ModelConfig, dtype: torch.dtype | None) -> dict[str, Any]:
    """Image-text model, tokenizer with query tokens, and image processor.

    Raises:
        ValueError: the source lacks one of them, holds pickled weights only, or is no image-text model.
    """
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    from model.nvila import is_nvila, load_nvila

    source = str(config.mllm.pretrained)
    _check_mllm_folder(source)
    safe: dict[str, Any] = {"trust_remote_code": False}
    if is_nvila(source):
        with _one_line(source):
            mllm, tokenizer, image_processor = load_nvila(source, dtype)
    else:
        with _one_line(source):
            _image_text_config(source)
            mllm = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype or "auto", use_safetensors=True, **safe)
            tokenizer = AutoTokenizer.from_pretrained(source, **safe)
            image_processor = AutoImageProcessor.from_pretrained(source, **safe)
        _check_complete(source, {"mllm": mllm})
    add_query_tokens(tokenizer, config.adapter.num_queries)
    if len(tokenizer) > mllm.get_input_embeddings().num_embeddings:
        mllm.resize_token_embeddings(len(tokenizer))
    return {"mllm": mllm, "tokenizer": tokenizer, "image_processor": image_processor}


def laid_out_mllm(source: str) -> Any:
    """The model of a folder, random where it is not on "meta".

    Raises:
        ValueError: as `load_mllm`.
    """
    from transformers import AutoModelForImageTextToText

    from model.nvila import is_nvila, laid_out_nvila

    _check_mllm_folder(source)
    with _one_line(source):
        if is_nvila(source):
            return laid_out_nvila(source)
        return AutoModelForImageTextToText.from_config(_image_text_config(source))


def _check_mllm_folder(source: str) -> None:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{source}: no config.json; give the folder of a transformers image-text model")
        if not (folder / "llm").is_dir():  # NVILA's weights lie in folders of their own
            _check_weights(folder)


def _image_text_config(source: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    settings = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if type(settings) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(f"{source}: a {settings.model_type} model, which reads no images; give an image-text model")
    return settings


def laid_out_video(video: VideoConfig) -> dict[str, Any]:
    """Text encoder, transformer, VAE and scheduler as a folder's configurations describe them, without its weights.

    Raises:
        ValueError: as `load_video`.
    """
    import torch

    source, name = str(video.pretrained), check_video_source(video)
    encoder = video_class(video.kind, "text_encoder")
    with _one_line(source):
        parts = {
            part: kind.from_config(kind.load_config(source, subfolder=part))
            for part, kind in ((part, video_class(video.kind, part)) for part in ("transformer", "vae"))
        }
        with torch.device("cpu"):
            parts["scheduler"] = video_class(video.kind, "scheduler", name).from_pretrained(source, subfolder="scheduler")
        parts["text_encoder"] = encoder(encoder.config_class.from_pretrained(source, subfolder="text_encoder"))
    _check_transformer(source, parts["transformer"].config, parts["vae"].config)
    return parts


def load_video(video: VideoConfig, dtype: torch.dtype | None) -> dict[str, Any]:
    """Transformer, VAE, scheduler, text encoder and its tokenizer from a diffusers pipeline's folder or repository.

    Wan's VAE is float32 whatever the type of the rest, as its authors run it.

    Raises:
        ValueError: a part is missing, of another backbone, or has pickled weights only; or a model that is not supported.
    """
    from transformers import AutoTokenizer

    source = str(video.pretrained)
    name = check_video_source(video)
    # Older copies of CogVideoX space the sampling steps otherwise than its own scripts do.
    spacing = {"timestep_spacing": video.scheduler["timestep_spacing"]} if video.kind == "cogvideox" else {}

    def load(part: str, **settings: Any) -> Any:
        return video_class(video.kind, part).from_pretrained(source, subfolder=part, use_safetensors=True, **settings)

    import torch

    with _one_line(source):
        parts = {
            "text_encoder": load("text_encoder", dtype=dtype or "auto"),
            "text_tokenizer": AutoTokenizer.from_pretrained(source, subfolder="tokenizer", trust_remote_code=False),
            "transformer": load("transformer", dtype=dtype),
            "vae": load("vae", dtype=torch.float32 if video.kind == "wan" else dtype),
            "scheduler": video_class(video.kind, "scheduler", name).from_pretrained(source, subfolder="scheduler", **spacing),
        }
    _check_complete(source, parts)
    _check_transformer(source, parts["transformer"].config, parts["vae"].config)
    return parts


def _check_complete(source: str, parts: dict[str, Any]) -> None:
    for part in [name for name, value in parts.items() if hasattr(value, "named_parameters")]:
        missing = [key for key, value in parts[part].named_parameters() if value.is_meta]
        if missing:
            raise ValueError(f"{source}: {len(missing)} weights of {part} are missing, the first is {missing[0]}")


def check_video_source(video: VideoConfig) -> str:
    """Checks where a video model comes from, before anything large is read.

    Returns:
        Name of the class of its scheduler.

    Raises:
        ValueError: as `load_video`.
    """
    source, folder = str(video.pretrained), Path(str(video.pretrained))
    if folder.is_dir():
        index = _read(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        _refuse_two_experts(source, index, (folder / "transformer_2").is_dir())
        for part in _VIDEO_FOLDERS:
            if not (folder / part).is_dir():
                raise ValueError(
                    f"{folder / part}: folder is missing; give a folder in diffusers layout, with {', '.join(_VIDEO_FOLDERS)}"
                )
        for part in ("text_encoder", "transformer", "vae"):
            _check_weights(folder / part)
        found = {part: _read(folder / part / "config.json") for part in ("transformer", "vae")}
        scheduler = _read(folder / "scheduler" / "scheduler_config.json")
    else:
        from diffusers import DiffusionPipeline

        with _one_line(source):
            index = DiffusionPipeline.load_config(source)
        _refuse_two_experts(source, index, index.get("transformer_2", [None])[0] is not None)
        found = {part: {"_class_name": index.get(part, ["", ""])[1]} for part in ("transformer", "vae")}
        scheduler = {"_class_name": index.get("scheduler", ["", ""])[1]}
    for part, settings in found.items():
        wanted = VIDEO_CLASSES[video.kind][part]
        if settings.get("_class_name") != wanted:
            raise ValueError(
                f"{source}: its {part} is a {settings.get('_class_name')}, but the preset wants a {wanted}; "
                f"choose a preset of that video model"
            )
    name = str(scheduler.get("_class_name"))
    if name not in VIDEO_CLASSES[video.kind]["scheduler"]:
        raise ValueError(f"{source}: scheduler {name}; there are {', '.join(VIDEO_CLASSES[video.kind]['scheduler'])}")
    return name if video.kind == "wan" else str(VIDEO_CLASSES[video.kind]["scheduler"][0])


def _refuse_two_experts(source: str, index: dict[str, Any], second: bool) -> None:
    if second or index.get("boundary_ratio") is not None:
        raise ValueError(
            f"{source}: a video model of two transformers (Wan 2.2 A14B, one for each half of the noise), which is not "
            f"supported; use Wan 2.2 TI2V 5B or Wan 2.1"
        )


def _check_transformer(source: str, transformer: Any, vae: Any) -> None:
    """Raises ValueError for kinds of a known class that are trained for something else than text to video."""
    if transformer.get("patch_size_t") is not None:
        raise ValueError(f"{source}: CogVideoX 1.5, which packs frames in pairs, is not supported; use CogVideoX-2B or 5B")
    channels = vae["z_dim"] if "z_dim" in vae else vae["latent_channels"]
    if transformer["in_channels"] != channels:
        raise ValueError(
            f"{source}: its transformer takes {transformer['in_channels']} channels of latents that have {channels}: an "
            f"image-to-video model; use a text-to-video one"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: not readable ({' '.join(str(error).split())}); download it again") from None


def _check_weights(folder: Path) -> None:
    """Raises ValueError when the folder's weights are pickled only, absent, or lack a file that their index names."""
    names = {file.name for file in folder.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith(_PICKLED))
        if pickled:
            raise ValueError(f"{folder}: only pickled weights ({pickled[0]}), which are not loaded; save them as safetensors")
        raise ValueError(f"{folder}: no weights (*.safetensors); download it again")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        gone = sorted(set(_read(index).get("weight_map", {}).values()) - names)
        if gone:
            raise ValueError(f"{folder / gone[0]}: missing, though {index.name} names it; download it again")
