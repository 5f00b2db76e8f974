"""Export formats, by name. Adding one is a module and a line here."""

from app.errors import InvalidInput
from app.exporters.base import Exporter, ExportRow
from app.exporters.jsonl import JsonlExporter
from app.exporters.native import NativeExporter

EXPORTERS: dict[str, Exporter] = {
    "jsonl": JsonlExporter(),
    "parquet": NativeExporter(),
}


def exporter(name: str) -> Exporter:
    """Raises `InvalidInput` with the formats that there are."""
    found = EXPORTERS.get(name)
    if found is None:
        raise InvalidInput(
            f"there is no format {name!r}; there are: {', '.join(EXPORTERS)}",
            errors=[{"detail": "no such format", "pointer": "#/format"}],
        )
    return found


__all__ = ["EXPORTERS", "ExportRow", "Exporter", "exporter"]
