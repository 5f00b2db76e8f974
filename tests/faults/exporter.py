"""A process that makes exports: `python -m tests.faults.exporter DATABASE_URL STORAGE_URL NAME LEASE`."""

import sys
import time

from app.db.session import connect
from app.services.export import run_next
from app.storage.places import open_storage


def main() -> None:
    database_url, storage_url, name, lease = sys.argv[1:]
    database, storage = connect(database_url), open_storage(storage_url)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        if not run_next(database, storage, name, float(lease), lambda: False, park_seconds=0.1):
            time.sleep(0.02)


if __name__ == "__main__":
    main()
