"""Verbs that look at training before it starts."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from typing import Any

from recipes.command import add_verb

STAGES = ("pretrain", "align", "single_shot", "multi_shot", "lora")


def add_train_verbs(verbs: Any) -> None:
    """Add them to the parser."""
    buckets = add_verb(
        verbs, "explain-buckets", _explain_buckets, "where each clip goes before training, and why some are left out"
    )
    buckets.add_argument(
        "directory", metavar="DIR", help="a dataset directory, or its address: https://, s3://, hf://datasets/"
    )
    buckets.add_argument("--stage", choices=STAGES, default="single_shot", help="whose stream and settings (%(default)s)")
    buckets.add_argument("--preset", choices=("tiny", "paper"), default="paper", help="of that stage (%(default)s)")
    buckets.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="settings_changed")
    buckets.add_argument(
        "--clips",
        nargs="+",
        type=_clip,
        metavar="FxHxW@FPS",
        help="buckets instead of the preset's one clip: 17x480x720@8 49x480x720@8",
    )
    buckets.add_argument(
        "--batch-tokens", type=int, metavar="N", help="latent tokens a step, from which each bucket's batch follows"
    )
    buckets.add_argument("--keys", action="store_true", help="list every sample with its bucket, and every shot left out")
    buckets.add_argument("--json", action="store_true", help="print the report as JSON")


def _clip(text: str) -> tuple[int, int, int, float]:
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)@(\d+(?:\.\d+)?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not like 49x480x720@8 (frames, height, width, frames a second)")
    return int(found[1]), int(found[2]), int(found[3]), float(found[4])


def _explain_buckets(options: argparse.Namespace) -> int:
    from importlib import import_module

    from recipes.config import override
    from recipes.stage import stream_settings
    from streams.explain import keys, open_for_report, report

    stage = import_module(f"recipes.{options.stage}").STAGE
    config = override(stage.presets[options.preset], options.settings_changed)
    clip, settings = stream_settings(config)
    clips = [replace(clip, frames=f, height=h, width=w, fps=fps) for f, h, w, fps in options.clips or ()] or [clip]
    if options.batch_tokens:
        settings |= {"global_batch": None, "batch_tokens": options.batch_tokens}
    stream, warned = open_for_report(options.directory, clips, stream=stage.stream, **settings)
    told = report(stream, warned)
    print(json.dumps(told.as_dict()) if options.json else told.text())
    if options.keys:
        for key, where in keys(stream):
            print(key, where, sep="\t")
    return 0
