"""Secrets are references, resolved at the last moment: `env:NAME` or `file:/path`. Never stored, logged or returned."""

import os
from pathlib import Path

from app.errors import InvalidInput, TeacherRefusedKey


def check_reference(reference: str) -> None:
    """Raises `InvalidInput` for anything but a reference, without repeating what may be a secret."""
    scheme, colon, rest = reference.partition(":")
    if scheme not in ("env", "file") or not colon or not rest:
        raise InvalidInput(
            "a secret is given as a reference, `env:NAME` or `file:/path`, never as itself",
            errors=[{"detail": "not a reference", "pointer": "#/secret_ref"}],
        )


def resolve(reference: str | None) -> str | None:
    """The secret; None where there is no reference. Raises `TeacherRefusedKey` where nothing is behind it."""
    if reference is None:
        return None
    check_reference(reference)
    scheme, _, rest = reference.partition(":")
    try:
        value = os.environ[rest] if scheme == "env" else Path(rest).read_text()
    except (KeyError, OSError, UnicodeDecodeError) as error:
        raise TeacherRefusedKey(f"the secret {reference} cannot be read by this process") from error
    if not value.strip():
        raise TeacherRefusedKey(f"the secret {reference} is empty")
    return value.strip()
