"""Folders for files on their way to and from a batch API. Prompts and answers lie in them: what was left is swept."""

import fcntl
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "retort-batch-"
_HELD = "held"  # locked as long as whoever made the folder lives
_YOUNG_SECONDS = 60.0  # between the making of a folder and its lock


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone at the block's end."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, (Path(name) / _HELD).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield Path(name)


def sweep(young_seconds: float = _YOUNG_SECONDS) -> int:
    """Delete what killed processes of this machine left. Returns how many folders."""
    swept = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < young_seconds:
                continue
            with (folder / _HELD).open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            swept += 1
        except BlockingIOError:
            continue
        except OSError as error:  # another process sweeps, too, or another user's it is
            log.debug("%s is not swept: %s", folder, error)
    return swept
