"""NVILA, the multimodal language model of the paper, out of transformers parts and without the code of its repository.

NVILA (Liu et al. 2024, "NVILA: Efficient Frontier Visual Language Models") is not in transformers: its repositories bring
Python code of their own, which wants CUDA, flash-attn and an old transformers, and which this project does not run. What they
hold besides is three ordinary folders of safetensors: ``llm`` (Qwen2), ``vision_tower`` (SigLIP) and ``mm_projector``. A LLaVA
with another projector is the same network, so that is what is built here, and these weights are loaded into it.

A picture is read as NVILA reads a frame of a video: one tile of the vision tower's size, whose features are joined 2 x 2 (or 3
x 3) and projected, followed by a line break. Models with tiles of several scales ("dynamic S2", as NVILA-8B) expect the
features of every scale side by side; from a single tile these are the same features so many times over, which is what NVILA's
own code does for it. Its reading of a large picture in many tiles is left out.

Not verified here: the published weights were never loaded, and no output was compared with NVILA's own. Layout and names
follow its published remote code (NVlabs/VILA, ``llava/remote_code``: ``modeling_vila.py``, ``base_projector.py``,
``media_encoder.py``, ``builder.py``); a folder of that layout with small random weights is what the tests load. Check the
licence: NVILA's weights are CC BY-NC 4.0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

__all__ = ["NvilaConfig", "NvilaForConditionalGeneration", "PreTrainedModel", "is_nvila", "load_nvila"]

IMAGE_TOKEN = "<image>"
"""What stands for a picture in NVILA's tokenizer; it is added to the tokenizer where the folder's lacks it."""
PROJECTORS = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Patches joined along a side, by the name of the projector."""
_FILES = ["config.json", "llm/*", "vision_tower/*", "mm_projector/*"]


class NvilaConfig(LlavaConfig):
    """A LLaVA's configuration with NVILA's projector.

    Args:
        joined: patches joined along a side into one token, 2 or 3.
        scales: how many scales of a picture the projector expects side by side.
        eoi_token_id: the token after a picture, a line break.
    """

    model_type = "animeshooter_nvila"

    joined: int = 2
    scales: int = 1
    eoi_token_id: int | None = None


class NvilaProjector(nn.Module):
    """NVILA's ``mlp_downsample_*``: squares of patches side by side, normalised, and projected by an MLP.

    Args:
        config: see `NvilaConfig`.
    """

    def __init__(self, config: NvilaConfig) -> None:
        super().__init__()
        width, out = config.vision_config.hidden_size * config.scales, config.text_config.hidden_size
        self.joined, self.scales = config.joined, config.scales
        wide = [width * self.joined**2]
        if self.joined == 3:
            wide.append(width * 3)
        steps: list[nn.Module] = []
        for one, after in zip(wide, [*wide[1:], out]):
            steps += [nn.LayerNorm(one), nn.Linear(one, after), nn.GELU()]
        self.layers = nn.Sequential(nn.Identity(), *steps, nn.Linear(out, out))  # the repository counts the joining as number 0

    def forward(self, features: Tensor) -> Tensor:
        """Patch features [N, side * side, D] -> [N, ceil(side / joined)^2, out]."""
        side, step = round(features.shape[1] ** 0.5), self.joined
        grid = features.repeat(1, 1, self.scales).unflatten(1, (side, side))
        missing = -side % step
        grid = functional.pad(grid, (0, 0, 0, missing, 0, missing))
        cells = grid.unflatten(1, (-1, step)).unflatten(3, (-1, step))  # [N, row, down, column, across, D]
        return self.layers(cells.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2))


class NvilaForConditionalGeneration(LlavaForConditionalGeneration):
    """A LLaVA with NVILA's projector.

    Args:
        config: see `NvilaConfig`.
    """

    config_class = NvilaConfig

    def __init__(self, config: NvilaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = NvilaProjector(config)
        self.post_init()


AutoConfig.register(NvilaConfig.model_type, NvilaConfig, exist_ok=True)
AutoModelForImageTextToText.register(NvilaConfig, NvilaForConditionalGeneration, exist_ok=True)


def is_nvila(source: str) -> bool:
    """Whether a folder or a Hub repository holds a model in NVILA's own layout; only its configuration is read."""
    path = Path(source) / "config.json"
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(source, "config.json"))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
            return False
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and {"llm_cfg", "vision_tower_cfg", "mm_projector_cfg"} <= set(told)


def load_nvila(source: str, dtype: torch.dtype | None = None) -> tuple[NvilaForConditionalGeneration, Any, Any]:
    """Model, tokenizer and image processor of a folder or Hub repository in NVILA's own layout.

    Args:
        source: folder or repository, such as ``Efficient-Large-Model/NVILA-8B``.
        dtype: of the weights; as they are stored by default.

    Raises:
        ValueError: a part is missing, is pickled, or is of a kind not built here; names it.
    """
    from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipVisionModel

    folder = _folder(source)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in ("llm", "vision_tower", "mm_projector"):
        if not list((folder / part).glob("*.safetensors")):
            raise ValueError(f"{folder / part}: no weights as safetensors; download the whole repository again")
    from transformers import AutoModelForCausalLM

    safe: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "dtype": dtype or "auto"}
    llm = AutoModelForCausalLM.from_pretrained(folder / "llm", **safe)
    tower = SiglipVisionModel.from_pretrained(folder / "vision_tower", use_safetensors=True, dtype=dtype or llm.dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder / "llm", trust_remote_code=False)
    processor = SiglipImageProcessorPil.from_pretrained(folder / "vision_tower")
    processor.size = {"height": tower.config.image_size, "width": tower.config.image_size}
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if len(tokenizer) > llm.get_input_embeddings().num_embeddings:
        llm.resize_token_embeddings(len(tokenizer))
    config = _config_of(folder, told, llm.config, tower.config, tokenizer)
    with torch.device("meta"):
        model = NvilaForConditionalGeneration(config)
    model.model.language_model, model.lm_head, model.model.vision_tower = llm.model, llm.lm_head, tower
    model.model.multi_modal_projector = _projector(folder, config).to(dtype or llm.dtype)
    return model.eval(), tokenizer, processor


def laid_out_nvila(source: str) -> NvilaForConditionalGeneration:
    """The model of a local folder in NVILA's layout, random where it is not on "meta".

    Raises:
        ValueError: as `load_nvila`.
    """
    from transformers import AutoTokenizer, SiglipVisionConfig

    folder = Path(source)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = AutoConfig.from_pretrained(folder / "llm", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "llm", trust_remote_code=False)
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    vision = SiglipVisionConfig.from_pretrained(folder / "vision_tower")
    return NvilaForConditionalGeneration(_config_of(folder, told, text, vision, tokenizer))


def _folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=_FILES))


def _config_of(folder: Path, told: dict[str, Any], text: Any, vision: Any, tokenizer: Any) -> NvilaConfig:
    kind = json.loads((folder / "mm_projector" / "config.json").read_text(encoding="utf-8")).get("mm_projector_type")
    if kind not in PROJECTORS:
        raise ValueError(f"{folder / 'mm_projector'}: projector {kind} is not built here; there are {', '.join(PROJECTORS)}")
    if told.get("s2") and not told.get("dynamic_s2"):
        raise ValueError(f"{folder}: reads every picture at several scales at once (s2), which is not built here")
    if told.get("mm_vision_select_feature", "cls_patch") != "cls_patch":
        raise ValueError(f"{folder}: mm_vision_select_feature {told['mm_vision_select_feature']} is not built here")
    side, joined = vision.image_size // vision.patch_size, PROJECTORS[kind]
    ends = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return NvilaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(-(-side // joined)) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=told.get("mm_vision_select_layer", -2),
        joined=joined,
        scales=len(str(told["s2_scales"]).split(",")) if told.get("dynamic_s2") else 1,
        eoi_token_id=ends[-1] if ends else None,
    )


def _projector(folder: Path, config: NvilaConfig) -> NvilaProjector:
    from safetensors.torch import load_file

    projector = NvilaProjector(config)
    weights: dict[str, Tensor] = {}
    for file in sorted((folder / "mm_projector").glob("*.safetensors")):
        weights |= load_file(file)
    try:
        projector.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / 'mm_projector'}: weights of another projector than its config says ({reason})") from None
    return projector
