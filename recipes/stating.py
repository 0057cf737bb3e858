"""What a stage does with the model, said before it trains: where it starts, what it trains, keeps and leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.record import base_weights, read_record

if TYPE_CHECKING:
    from model import AnimeShooterGen
    from recipes.config import Config
    from recipes.stage import Stage

DROPPED = {"reference": "reference", "caption": "caption", "both": "both reference and caption"}
LORAS = {
    "mllm_lora": ("mllm", "default", "MLLM"),
    "transformer_lora": ("transformer", "default", "video transformer"),
    "context_lora": ("transformer", "context", "video transformer for its context"),
}
"""Component, name of the adapter, and what a reader calls it."""


def statement(stage: Stage, config: Config, gen: AnimeShooterGen, parent: Path | None) -> str:
    """Some lines for the log, from the model as it stands before anything is wrapped or sharded.

    Args:
        stage: what is about to be trained.
        config: its settings.
        gen: the model, its trainable parameters set.
        parent: the checkpoint it starts from; None for the preset.
    """
    from model import parameter_table

    table = parameter_table(gen)
    trained = [f"{name} ({count:,} parameters)" for name, (_, count) in table.items() if count]
    frozen = [name for name, (_, count) in table.items() if not count]
    lines = [
        f"{stage.name}: starts from {_start(config, parent)}",
        f"  trains {', '.join(trained)}; frozen: {', '.join(frozen)}",
    ]
    lines += [_lora(part, gen, table[part][1] > 0, parent) for part in LORAS if part in table]
    rates = {words: getattr(config.dropout, name) for name, words in DROPPED.items() if _asks(stage, name)}
    dropped = [f"{words} of {rate:.0%}" for words, rate in rates.items() if rate]
    if dropped:
        lines.append(f"  trains without {', without '.join(dropped)} of the samples, to have something to guide against")
    return "\n".join(lines)


def _start(config: Config, parent: Path | None) -> str:
    if parent is None:
        from recipes.parts import model_config

        bases = base_weights(model_config(config), revisions=False)
        told = [f"{part} of {base['name']}" if base else f"{part} with random weights" for part, base in bases.items()]
        return f"preset {config.preset}: {', '.join(told)}"
    record: dict[str, Any] = read_record(parent)
    steps = record.get("steps")
    return f"{parent} (stage {record['stage']}, preset {record.get('preset')}{f', {steps:,} steps' if steps else ''})"


def _lora(part: str, gen: AnimeShooterGen, trained: bool, parent: Path | None) -> str:
    """What becomes of a LoRA the model has."""
    component, adapter, where = LORAS[part]
    rank = getattr(gen, component).peft_config[adapter].r
    if not trained:
        return f"  keeps the LoRA of rank {rank} on the {where} as it is"
    had = parent is not None and (parent / part).is_dir()
    return f"  {'goes on with the' if had else 'adds a new'} LoRA of rank {rank} on the {where}"


def _asks(stage: Stage, rate: str) -> bool:
    """Whether a dropout rate is one of a stage: some preset of it sets it."""
    return any(getattr(preset.dropout, rate) for preset in stage.presets.values())
