"""Load a checkpoint by its name on the Hub as anybody would, in a process of its own with an empty cache, and hash its weights.

Run: python -m recipes.reload ORG/NAME COMMIT FOLDER   (prints {"hub": {part: sha256}, "local": {part: sha256}})
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from animeshooter_dataset import DataError

ROOT = Path(__file__).resolve().parent.parent


def weights(name: str, revision: str | None = None) -> dict[str, str]:
    """SHA-256 of each part's weights (names, types, shapes, bytes) of a checkpoint as :class:`AnimeShooterPipeline` loads it.

    Args:
        name: folder or Hub repository.
        revision: commit on the Hub.

    Raises:
        ValueError: it does not load.
    """
    import torch

    from model import AnimeShooterPipeline
    from recipes.trainer import quiet_loading

    quiet_loading()
    parts = AnimeShooterPipeline.from_pretrained(name, revision=revision).components
    hashes = {}
    for part, module in parts.items():
        if isinstance(module, torch.nn.Module):
            digest = hashlib.sha256()
            for key, value in sorted(module.state_dict().items()):
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
            hashes[part] = digest.hexdigest()
    return hashes


def compare(
    repo_id: str, commit: str, folder: Path, *, endpoint: str, token: str | None, clean: Callable[[str], str]
) -> tuple[str, ...]:
    """Load a published checkpoint and the folder it came from, and compare their weights bit by bit.

    Args:
        repo_id: its name on the Hub.
        commit: the commit to load.
        folder: where it came from.
        endpoint: address of the Hub.
        token: for private repositories.
        clean: makes what a failed load said one line without secrets.

    Returns:
        The parts whose weights are the same: all of them.

    Raises:
        DataError: what was published does not load, or has other weights.
    """
    with tempfile.TemporaryDirectory(prefix="animeshooter-reload-") as empty:
        # An empty folder to run in: a name is taken as a folder's where there is one of that name.
        added = {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_CACHE": empty,
            "PYTHONPATH": str(ROOT),
            **({"HF_TOKEN": token} if token else {}),
        }
        if os.environ.get("PYTHONPATH"):
            added["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
        command = [sys.executable, "-m", "recipes.reload", repo_id, commit, str(folder.resolve())]
        here = Path(empty) / "here"
        here.mkdir()
        done = subprocess.run(command, env=os.environ | added, cwd=here, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
        raise DataError(
            f"{repo_id}: is on the Hub at {commit[:8]}, but does not load from there ({clean(last)}); publish again"
        )
    told = json.loads(done.stdout.splitlines()[-1])
    wrong = sorted(
        part for part in told["local"].keys() | told["hub"].keys() if told["local"].get(part) != told["hub"].get(part)
    )
    if wrong:
        raise DataError(
            f"{repo_id}: at {commit[:8]} the weights of {', '.join(wrong)} are not those of {folder}; publish again"
        )
    return tuple(told["local"])


def main(arguments: list[str]) -> int:
    """Hash both and print the hashes."""
    name, commit, folder = arguments
    print(json.dumps({"hub": weights(name, commit), "local": weights(folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
