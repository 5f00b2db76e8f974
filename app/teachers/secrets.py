"""Secrets are references: `env:NAME` or `file:/path`. They are read at the last moment and never stored or logged."""

import os
from pathlib import Path

from pydantic import SecretStr

from app.errors import InvalidInput, TeacherRefusedKey


def resolve(reference: str | None) -> SecretStr | None:
    """The secret behind a reference; None for no reference.

    Raises `TeacherRefusedKey` where it cannot be read or is empty: the lane parks until somebody mends it.
    """
    if reference is None:
        return None
    kind, _, place = reference.partition(":")
    if kind == "env" and place:
        value = os.environ.get(place)
        if value is None:
            raise TeacherRefusedKey(
                f"the teacher's secret is in the environment variable {place}, which this process does not have"
            )
    elif kind == "file" and place:
        try:
            value = Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise TeacherRefusedKey(
                f"the teacher's secret is in the file {place}, which cannot be read: {why}"
            ) from error
    else:
        raise InvalidInput("a secret is named by env:NAME or file:/path")
    value = value.strip()
    if not value:
        raise TeacherRefusedKey(f"the teacher's secret ({reference}) is empty")
    if not value.isascii() or not value.isprintable():
        raise TeacherRefusedKey(
            f"the teacher's secret ({reference}) holds characters that no header can carry"
        )
    return SecretStr(value)
