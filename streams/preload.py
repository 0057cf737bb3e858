"""Imported by the process that decoding processes are forked from: what they need, once for all; see ``streams.workers``."""

from __future__ import annotations

import os

# Whoever is forked must find no thread of its parent: a lock held by one would stay locked, and its end unwaited for.
os.environ |= {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.setpgid(0, 0)  # signals to the trainer's group are not for it: it ends when nobody needs it

import av  # noqa: E402
import av.video.reformatter  # noqa: E402, F401

import streams.audio  # noqa: E402
import streams.batches  # noqa: E402
import streams.features  # noqa: E402, F401
