"""The servers that the other tests stand on are what they are said to be."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy import Engine, inspect, text

from app.db.migrate import current, head
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.valkey import ValkeyServer

ROOT = Path(__file__).resolve().parents[2]


def test_each_test_gets_a_migrated_database(database_url: str) -> None:
    assert current(database_url) == head()


def test_engine_talks_to_the_database_that_the_test_is_named_for(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    assert engine.dialect.name in request.node.name
    assert "completion" in inspect(engine).get_table_names()


@pytest.mark.parametrize("turn", [1, 2])
def test_databases_are_not_shared_between_tests(engine: Engine, turn: int) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE written_by_one_test (turn INTEGER)"))


def test_an_empty_database_has_no_schema(empty_database_url: str) -> None:
    assert current(empty_database_url) is None


def test_the_broker_keeps_what_it_is_given(broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.dbsize() == 0


def test_valkey_starts_again_on_its_port_and_empty() -> None:
    with ValkeyServer() as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "b")
        server.stop(signal.SIGKILL)
        assert not server.answers()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") is None


@pytest.mark.postgres
def test_postgres_starts_again_on_its_port_with_its_data() -> None:
    with PostgresServer() as server:
        server.create("kept")
        server.stop(signal.SIGQUIT)
        assert not server.answers()
        server.start()
        with psycopg.connect(server.url("kept").replace("+psycopg", "")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.postgres
def test_servers_end_with_a_killed_test_run() -> None:
    script = """
import time
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.valkey import ValkeyServer
with PostgresServer() as postgres, ValkeyServer() as valkey:
    print(postgres.folder, valkey.folder, postgres._process.pid, valkey._process.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        *folders, postgres, valkey = run.stdout.readline().split()
        servers = [psutil.Process(int(postgres)), psutil.Process(int(valkey))]
        run.kill()
    deadline = time.monotonic() + 10
    while any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers):
        assert time.monotonic() < deadline, "a server outlived its test run"
        time.sleep(0.05)
    for folder in folders:
        shutil.rmtree(folder)


def test_no_test_reaches_the_network() -> None:
    with socket.socket() as outward, pytest.raises(PermissionError, match="not on this machine"):
        outward.connect(("192.0.2.1", 80))
