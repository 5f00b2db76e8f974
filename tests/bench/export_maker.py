"""A worker's export and nothing else: `python -m tests.bench.export_maker DATABASE_URL STORAGE_URL JOB`.

Makes an export of nothing, as a worker that runs has everything loaded; says that it is ready, waits for a line, makes
the job's rows Parquet, says how it ended, and waits again.
"""

import json
import sys

from app.db.session import connect, session
from app.policy.rules import PolicyRules
from app.services import export
from app.services.export import ExportSpec, ExportView, Selection
from app.storage.places import open_storage


def main() -> None:
    database_url, storage_url, job = sys.argv[1:]
    database, storage = connect(database_url), open_storage(storage_url)

    def make(selection: Selection) -> ExportView:
        spec = ExportSpec(format="parquet", selection=selection)
        with session(database, writes=True) as work:
            asked = export.create(work, "prj_1", "key_1", spec, PolicyRules())
        export.run_next(database, storage, "bench", 60, lambda: False)
        with session(database, writes=False) as work:
            return export.get(work, "prj_1", asked.id)

    warm = make(Selection(jobs=(job,), finish_reasons=("none has it",)))
    with session(database, writes=True) as work:
        export.delete(work, "prj_1", warm.id)
    storage.delete_folder(export.folder_of(warm.id))
    print("ready", flush=True)
    sys.stdin.readline()
    view = make(Selection(jobs=(job,)))
    print(json.dumps({"status": str(view.status), "rows": view.n_rows}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
