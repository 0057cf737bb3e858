"""What the verbs of the command line share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any


def add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
    """A verb of the command line, with one line of help."""
    parser = verbs.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help="processes; changes nothing in the result (%(default)s)")


class Bar:
    """A progress bar on standard error, there only where somebody watches."""

    def __init__(self, label: str) -> None:
        from tqdm import tqdm

        self.bar = tqdm(desc=label, file=sys.stderr, disable=None, leave=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def to(self, done: int, total: int, label: str) -> None:
        """Show ``done`` of ``total`` steps."""
        self.bar.total, self.bar.n = total, done
        self.bar.set_postfix_str(label)

    def note(self, label: str) -> None:
        """Show what is being looked at; how much there is, is not known."""
        self.bar.update()
        self.bar.set_postfix_str(label)

    def say(self, line: str) -> None:
        """A line above the bar, on standard error."""
        self.bar.write(line, file=sys.stderr)

    def sent(self, progress: Any) -> None:
        """Show a :class:`curation.hub.Progress` in bytes."""
        self.bar.unit, self.bar.unit_scale = "B", True
        self.to(progress.bytes, progress.of_bytes, f"{progress.step}: {progress.name}")
