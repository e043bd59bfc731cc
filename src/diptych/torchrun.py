"""torchrun, with the same options, for the scripts in launch/: it ends with one line and the exit status of a rank.

python -m diptych.torchrun --standalone --nproc-per-node 8 -m diptych train CONFIG
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main as torchrun

from diptych.command_line import STATUS_FILE

GOES_ON = "the same command goes on from the last checkpoint"
MISTAKE = 2
"""The exit status after a user's mistake, which a rank has printed."""
LOST_MACHINES = 69
"""The exit status without the other machines: sysexits.h's EX_UNAVAILABLE. This machine may start again at once."""
LOOK_SECONDS = 0.1


def main(words: Sequence[str] | None = None) -> None:
    """Run torchrun with its own options (by default the command line's); print a line where it prints a traceback.

    The exit status is that of the first rank that failed, and 128 + N if that rank or torchrun got signal N; if none
    failed, what the ranks wrote into STATUS_FILE; LOST_MACHINES if the machines do not meet, or the one where they met
    is lost. After a user's mistake no rank is started again.
    """
    # Slurm sends them to every process of a job step; the ranks, which handle them, save and end, and this one waits.
    # A handler that does nothing, since ranks would inherit that a signal is ignored.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda *_: None)
    # torchrun keeps its store through all restarts, and restarted ranks would find addresses of dead ones in it.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    mistake = threading.Event()
    try:
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "status"
            os.environ[STATUS_FILE] = str(told)
            threading.Thread(target=_end_after_a_mistake, args=(told, mistake), daemon=True).start()
            torchrun(words)
            if agreed := _read(told):
                sys.exit(int(agreed))
    except SignalException as stop:
        if mistake.is_set():
            sys.exit(MISTAKE)
        _end(f"stopped by {stop.sigval.name}; {GOES_ON}", 128 + stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == MISTAKE:
            sys.exit(MISTAKE)
        status = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        _end(f"rank {rank} {_how_it_ended(failure)}, and no restart is left; {GOES_ON}", status)
    except RendezvousError as error:
        _end(f"lost the other machines ({str(error).partition('. ')[0]}); on all of them {GOES_ON}", LOST_MACHINES)


def _end_after_a_mistake(told: Path, mistake: threading.Event) -> None:
    """Stop torchrun, without its log, once a rank has written that a user's mistake ends it; set `mistake` first."""
    while _read(told) != str(MISTAKE):
        time.sleep(LOOK_SECONDS)
    mistake.set()
    logging.disable()
    os.kill(os.getpid(), signal.SIGTERM)


def _read(told: Path) -> str:
    try:
        return told.read_text()
    except FileNotFoundError:
        return ""


def _how_it_ended(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was killed by {signal.Signals(-failure.exitcode).name}"
    return f"ended with exit status {failure.exitcode}"


def _end(message: str, status: int) -> None:
    print(f"diptych.torchrun on {socket.gethostname()}: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
