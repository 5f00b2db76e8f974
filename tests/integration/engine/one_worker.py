"""One worker as a process of its own: `python -m tests.integration.engine.one_worker DATABASE STORAGE NAME`."""

import asyncio
import signal
import sys

from app.db.session import connect
from app.services.generate.engine import GenerationEngine
from app.storage.places import open_storage
from app.teachers import TeacherAccess, build
from tests.integration.engine.running import config


def main() -> None:
    database, storage, name = sys.argv[1:]
    access = TeacherAccess(allow_loopback=True)
    engine = GenerationEngine(
        connect(database),
        open_storage(storage),
        lambda spec: build(spec, access),
        config(name, lease_seconds=30.0),
    )
    signal.signal(signal.SIGTERM, lambda *_: engine.stop())
    asyncio.run(engine.run())


if __name__ == "__main__":
    main()
