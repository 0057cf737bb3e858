"""A program for tests: kills runs of a takedown, each as it begins some deed on the disk, and looks at what is left.

``python killed_takedown.py FOLDER``: ``FOLDER/whole`` is the dataset. Prints JSON: how many deeds a run has, at how many a run
was killed, how often the old and the new dataset stood then, and what was found wrong.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from takedowns import VIDEOS, state

from curation.takedown import takedown

WATCHED = {"open", "os.link", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "ctypes.dlsym"}
"""Audit events at which a run can be killed; the exchange of the two folders lies between two of them."""


class Trial:
    def __init__(self, folder):
        self.folder, self.data = folder, folder / "try" / "data"

    def run(self):
        takedown(self.data, VIDEOS[1:2], reason="asked", today=lambda: "2026-11-20", answers=self.folder / "answers")

    def fresh(self):
        shutil.rmtree(self.folder / "try", ignore_errors=True)
        shutil.copytree(self.folder / "whole", self.data)
        staged = self.folder / "try" / "data.work" / VIDEOS[1]
        staged.mkdir(parents=True)
        (staged / "clip.mp4").write_bytes(b"clip")

    def killed_at(self, deed):
        """Kill a run as it begins its ``deed``-th deed; whether it got that far. Notes how many there are."""
        self.fresh()
        child = os.fork()
        if not child:
            done = 0

            def count(name, arguments):
                nonlocal done
                if name in WATCHED:
                    done += 1
                    if done == deed:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            self.run()
            (self.folder / "deeds").write_text(str(done))
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder):
    trial = Trial(folder)
    trial.fresh()
    old = state(trial.data)
    trial.run()
    new = state(trial.data)
    assert not trial.killed_at(0)
    deeds = int((folder / "deeds").read_text())
    found, states = [], {"old": 0, "new": 0}
    moments = sorted({*range(1, deeds, 8), *range(max(1, deeds - 36), deeds)})
    for deed in moments:
        assert trial.killed_at(deed)
        now = state(trial.data)
        which = "old" if now == old else "new" if now == new else None
        if which is None:
            found.append(f"deed {deed}: neither old nor new")
            continue
        states[which] += 1
        trial.run()
        if state(trial.data) != new:
            found.append(f"deed {deed}: the second run does not complete it")
        if os.listdir(folder / "try") != ["data"]:
            found.append(f"deed {deed}: left {os.listdir(folder / 'try')}")
    print(json.dumps({"deeds": deeds, "moments": len(moments), "states": states, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
