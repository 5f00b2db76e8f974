"""`make demo`: prompts in over REST, a small real teacher kept busy, a dataset with logprobs out.

Run again, it finds what is there and makes nothing twice. Stopped at any moment, the next run goes on.
"""

import os
import signal
import sys
from types import FrameType


def _not_begun(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while a second's worth of modules is loaded: nothing to undo."""
    os.write(2, b"\nStopped before it began.\n")
    os._exit(130)


if __name__ == "__main__":
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, _not_begun)
    from app.demo.run import main

    sys.exit(main())
