"""Decoding processes that start quickly and leave nothing behind.

A spawned worker imports torch and all else anew, and runs the trainer's main module once more. Here one clean process does
the imports once (:mod:`multiprocessing.forkserver`) and every worker is forked from it: it starts in milliseconds and shares
that memory with the others. Nothing of the trainer is forked, neither its threads nor its CUDA.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

SERVER = "streams.preload"
"""What the process that workers are forked from imports."""


def worker_context() -> Any:
    """How decoding processes are started."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SERVER])
    return context


def warm_up() -> None:
    """Begin to start what workers are forked from, and do not wait for it; loading a model meanwhile costs nothing."""
    if worker_context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


@contextmanager
def without_main(*sent: Any) -> Iterator[None]:
    """Inside, processes are started that do not run the main module, unless what is ``sent`` to them is defined in it."""
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    if b"__main__" in pickle.dumps(sent):
        hidden = {}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def settle_in(_: int) -> None:
    """First thing in a worker: leave the trainer's process group, so that its signals leave the worker alone until the trainer
    has finished its step; and end when the trainer does, however it ends.
    """
    os.setpgid(0, 0)
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        threading.Thread(target=_end_with, args=(trainer.sentinel,), name="end with the trainer", daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
