"""The parent of a server, run as a program: when its own starter is gone, so are all its traces.

    guard.py LEAVINGS COMMAND...

LEAVINGS are paths, one a line, of which the first is the folder of the server. Standard input is a
pipe from the starter, which ends when the starter closes it or dies, however it dies. If the server
ends before, the file `ended` in its folder says how.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread


def _tell(server: subprocess.Popen[bytes], folder: Path) -> None:
    status = server.wait()
    (folder / "ended").write_text(str(status))


def guard(folder: Path, litter: Sequence[Path], command: Sequence[str]) -> None:
    """Run a server until standard input ends, then remove what it made."""
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        (folder / "ended").write_text(str(error))
        sys.stdin.read()
    else:
        teller = Thread(target=_tell, args=(server, folder))
        teller.start()
        sys.stdin.read()
        server.kill()
        teller.join()
    shutil.rmtree(folder)
    for path in litter:
        path.unlink(missing_ok=True)
    # Whoever the server started is of this group, and nobody else.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _folder, *_litter = map(Path, sys.argv[1].splitlines())
    guard(_folder, _litter, sys.argv[2:])
