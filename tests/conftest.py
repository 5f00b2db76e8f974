"""The real parts that tests stand on: databases on SQLite and PostgreSQL, a broker, folders. Nothing is faked or
skipped.

A test that takes `database_url` or `engine` runs twice, once on each database, each time on a migrated one of its own.
Servers start when the first test asks for them, one set for each process of pytest-xdist. No test reaches the network.
"""

import ipaddress
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine

from app.db.migrate import upgrade
from app.db.session import connect
from tests.fixtures import processes
from tests.fixtures.buckets import BucketServer
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.valkey import ValkeyServer

_TEMPLATE = "retort_template"
# What the tests themselves are told by their environment, and where large files are kept over runs.
_OURS = re.compile(r"RETORT_(CACHE_DIR|MODEL_DIR|(FAULT|BENCH|TEST)\w*)")
_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    """The tests see no settings of the developer's shell, keep no cache of data sets, and reach this machine only."""
    for name in [name for name in os.environ if name.startswith("RETORT_") and not _OURS.fullmatch(name)]:
        del os.environ[name]
    cache = tempfile.TemporaryDirectory(prefix="retort-huggingface-")
    config.add_cleanup(cache.cleanup)
    os.environ |= {"HF_HOME": cache.name, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    sys.addaudithook(_refuse_the_network)
    # A shell in the background or `nohup` ignores these, and every child would inherit it: tests send them.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if (
            signal.getsignal(number) is signal.SIG_IGN
            and threading.current_thread() is threading.main_thread()
        ):
            signal.signal(number, handler)
    # How quick an example is says more of what else runs on the machine than of the code.
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def _refuse_the_network(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and isinstance(address := arguments[1], tuple):
        try:
            inside = ipaddress.ip_address(address[0]).is_loopback
        except ValueError:
            inside = address[0] == "localhost"
        if not inside:
            raise PermissionError(f"a test called {address[0]}, which is not on this machine")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that all tests of this process share; fault tests make one of their own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """The name of a migrated database to copy from; nobody connects to it."""
    upgrade(postgres_server.create(_TEMPLATE))
    with postgres_server.connected() as connection:
        connection.execute("ALTER DATABASE retort_template WITH ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [_TEMPLATE]
        )
    return _TEMPLATE


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy from."""
    file = tmp_path_factory.mktemp("template") / "template.db"
    upgrade(f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return file


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, migrated_postgres: str) -> Iterator[str]:
    """A migrated, empty PostgreSQL database of the test's own."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create(name, migrated_postgres)
    postgres_server.drop(name)


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite database of the test's own."""
    file = tmp_path / "retort.db"
    shutil.copyfile(migrated_sqlite, file)
    return f"sqlite:///{file}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database of the test's own: the test runs on SQLite and on PostgreSQL."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a schema, for the tests of the migrations: on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"test_{next(_numbers)}"
    yield server.create(name)
    server.drop(name)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on `database_url`."""
    made = connect(database_url)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """A Valkey that all tests of this process share; fault tests make one of their own."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def broker_url(valkey_server: ValkeyServer) -> str:
    """The URL of an empty Valkey."""
    valkey_server.flush()
    return valkey_server.url


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[BucketServer]:
    """An S3 API that all tests of this process share."""
    with BucketServer() as server:
        yield server


@pytest.fixture
def bucket_url(bucket_server: BucketServer) -> Iterator[str]:
    """The URL of an empty place in a bucket; the environment says how it is reached."""
    with bucket_server.in_environment():
        yield bucket_server.new_bucket()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of the test's own, not there yet: the service makes it."""
    return tmp_path / "data"


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    return processes.free_port()
