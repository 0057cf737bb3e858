"""Verbs that look at training before it starts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
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
    buckets.add_argument("--preset", default="paper", help="of that stage (%(default)s)")
    buckets.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="settings_changed")
    buckets.add_argument(
        "--clips",
        nargs="+",
        metavar="FxHxW@FPS",
        help="buckets instead of the preset's one clip: 17x480x720@8 49x480x720@8",
    )
    buckets.add_argument(
        "--batch-tokens", type=int, metavar="N", help="latent tokens a step, from which each bucket's batch follows"
    )
    buckets.add_argument("--keys", action="store_true", help="list every sample with its bucket, and every shot left out")
    buckets.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor = add_verb(verbs, "doctor", _doctor, "what of the stack works on this machine, and the mend of what does not")
    doctor.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where one means to work (%(default)s)")
    doctor.add_argument("--offline", action="store_true", help="ask nothing of the network")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")


def _explain_buckets(options: argparse.Namespace) -> int:
    from importlib import import_module

    from animeshooter_dataset import DataError
    from recipes.config import override
    from recipes.data import stream_settings
    from streams.explain import keys, open_for_report, report

    stage = import_module(f"recipes.{options.stage}").STAGE
    if options.preset not in stage.presets:
        raise DataError(f"{options.stage} has no preset {options.preset}; choose one of {', '.join(stage.presets)}")
    changed = [f"data.clips={' '.join(options.clips)}"] if options.clips else []
    changed += [f"train.batch_tokens={options.batch_tokens}"] if options.batch_tokens else []
    config = override(stage.presets[options.preset], [*options.settings_changed, *changed])
    clips, settings = stream_settings(config)
    stream, warned = open_for_report(options.directory, clips, stream=stage.stream, **settings)
    told = report(stream, warned)
    print(json.dumps(told.as_dict()) if options.json else told.text())
    if options.keys:
        for key, where in keys(stream):
            print(key, where, sep="\t")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from recipes.doctor import examine, report, works

    findings = examine(options.folder, network=not options.offline)
    print(report(findings, options.json))
    return 0 if works(findings) else 2
