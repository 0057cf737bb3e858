"""``accelerate launch`` that ends with the exit code of the processes it started.

Accelerate and torchrun end with 1 whatever happened. Who starts a run for others, a Slurm script say, has to tell "not
finished, the same command goes on" (75) from an error that somebody has to mend (2). Everything else is ``accelerate launch``::

    python recipes/launch/launch.py --config_file recipes/launch/ddp.yaml recipes/align.py --data animeshooter
"""

from __future__ import annotations

import signal
import subprocess
import sys

NOT_FINISHED = 75
"""See ``recipes.together``."""


def code_of(codes: list[int]) -> int:
    """One exit code for all processes: an error that has to be mended (2) before all, then 75.

    A process that was lost takes the others down with 75; itself it has the number of a signal, or an unknown code.
    """
    if 2 in codes:
        return 2
    lost = any(code == NOT_FINISHED or code < 0 for code in codes)
    return NOT_FINISHED if lost else next((code for code in codes if code), 1)


def main(argv: list[str]) -> int:
    """Launch; returns the exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(argv))
    except ChildFailedError as error:
        return code_of([failure.exitcode for failure in error.failures.values()])
    except subprocess.CalledProcessError as error:  # of a single process
        return code_of([error.returncode])
    except SignalException as error:
        print(f"launch: {error}", file=sys.stderr)
        return NOT_FINISHED if error.sigval in (signal.SIGTERM, signal.SIGINT) else 128 + error.sigval
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
