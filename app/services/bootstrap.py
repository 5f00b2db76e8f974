"""First start: one project and one admin key, in a file that only its owner reads."""

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from app.db import projects as rows
from app.db.session import session
from app.domain.fingerprints import new_id
from app.services import projects
from app.services.projects import Role

FIRST_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class FirstProject:
    project_id: str
    key_file: Path
    made: bool  # False: there was a project already, nothing was changed


def ensure_first_project(engine: Engine, key_file: Path, default_license: str | None) -> FirstProject:
    """Make project `default` and a loopback-only admin key, unless any project exists.

    The key is in `key_file` (mode 0600) before its hash is committed: a crash in between leaves a file that the next
    start writes anew, never a project that nobody has a key to. Safe for several processes at once.
    """
    with session(engine, writes=True) as work:
        found = rows.any_project(work)
        if found is not None:
            return FirstProject(found, key_file, made=False)
        project_id = new_id("prj")
        if not rows.add_project(work, project_id, FIRST_PROJECT, projects.checked_license(default_license)):
            # Another process was faster, on PostgreSQL: its row is there once its transaction has ended.
            there = rows.any_project(work)
            return FirstProject(there or "", key_file, made=False)
        key = projects.create_key(work, project_id, "first start", Role.ADMIN, loopback_only=True)
        _write_private(key_file, f"{key.secret}\n")
        return FirstProject(project_id, key_file, made=True)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
