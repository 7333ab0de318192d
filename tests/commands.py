"""The command line, for tests."""

import io
import os
import shutil
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from hookflat import collector
from hookflat.cli import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@dataclass
class Done:
    """What a command left, as subprocess.run says it."""

    returncode: int
    stdout: str
    stderr: str


def hookflat(*arguments, cwd=None):
    """The command in this process: a fresh one takes seconds to start."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = patch.object(sys, "argv", ["hookflat", *map(str, arguments)])
    environment = patch.dict(os.environ, {"COLUMNS": "200"})
    process = patch.object(collector, "leave_the_rest")  # it goes on
    with redirect_stdout(out), redirect_stderr(err), chdir(cwd or "."), argv, environment, process:
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except Exception:
            sys.excepthook(*sys.exc_info())
            code = 1
        finally:
            collector.as_usual()
    return Done(code, out.getvalue(), err.getvalue())


def fails(code, *arguments, **kwargs):
    done = hookflat(*arguments, **kwargs)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr
