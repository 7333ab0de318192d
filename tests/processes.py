"""The command line on one or several processes, forked from this one: a fresh interpreter takes seconds to start."""

import importlib
import io
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from accelerate.state import AcceleratorState
from commands import Done

from hookflat.cli import main

IMPORTS = ("timm.layers", "torch._dynamo", "hookflat.cli.running", "hookflat.training.entry")
"""What a training imports: once here, or seconds in each process."""


@dataclass
class Started:
    """Processes at work; what they say goes to files in `folder`."""

    pids: list[int]
    folder: Path
    codes: dict[int, int]

    def poll(self):
        """The exit code of the first that failed, once all have ended, else None; the others are ended then."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
                    if self.codes[rank]:
                        time.sleep(0.5)
                        self.kill(signal.SIGTERM)
        if len(self.codes) < len(self.pids):
            return None
        return next((abs(code) for code in self.codes.values() if code), 0)

    def kill(self, sign=signal.SIGKILL):
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                with suppress(ProcessLookupError):
                    os.kill(pid, sign)

    def wait(self, timeout=300):
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(self.said("err"))
            time.sleep(0.01)
        return code

    def said(self, stream):
        return "".join((self.folder / f"{rank}.{stream}").read_text() for rank in range(len(self.pids)))


def start(folder, *arguments, processes=1, call=None, **environment):
    """Begin `hookflat ARGUMENTS` (or `call()`) on processes of their own."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    for name in IMPORTS:
        importlib.import_module(name)
    pids = []
    sys.stdout.flush()
    for rank in range(processes):
        ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        pid = os.fork()
        if not pid:
            _child(folder, rank, shared | ranked, arguments, call)
        pids.append(pid)
    return Started(pids, folder, {})


def finished(folder, *arguments, **options):
    """`start`, and wait."""
    started = start(folder, *arguments, **options)
    return Done(started.wait(), started.said("out"), started.said("err"))


def _child(folder, rank, environment, arguments, call):
    code = 1
    try:
        for descriptor, stream in ((1, "out"), (2, "err")):
            file = os.open(folder / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(d, "wb", 0), write_through=True) for d in (1, 2))
        for name in [name for name, value in environment.items() if value is None]:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in environment.items() if value is not None})
        AcceleratorState._reset_state(True)
        sys.argv = ["hookflat", *map(str, arguments)]
        call() if call else main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
