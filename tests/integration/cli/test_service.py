"""teachers, keys, doctor, and what every command says where the service is not, or does not take the key."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.world import ScriptedServer
from tests.fixtures import processes
from tests.fixtures.service import Service
from tests.integration.cli.conftest import Retort

NEED_THE_SERVICE = (
    ("jobs", "list"),
    ("jobs", "show", "job_1"),
    ("prompt-sets", "list"),
    ("teachers", "list"),
    ("teachers", "probe", "t"),
    ("keys", "list"),
    ("watch", "job_1"),
    ("export", "job_1", "--to", "out"),
    ("submit", "--prompt-set", "ps_1", "--teacher", "t"),
)


@pytest.fixture(params=[("jobs", "list"), ("export", "job_1", "--to", "out")], ids=lambda words: words[0])
def words(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


def test_no_service(alone: Retort, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    done = alone(*words, "--json")
    assert (done.code, done.out) == (3, "")
    assert done.problem["error"] == "unreachable"
    assert done.problem["exit"] == 3
    assert "`retort up` starts one here" in done.problem["detail"]


def test_something_else_at_its_address(
    alone: Retort, monkeypatch: pytest.MonkeyPatch, teacher: ScriptedServer
) -> None:
    """A web server that is not Retort."""
    monkeypatch.setenv("RETORT_URL", teacher.url)
    assert alone("jobs", "list").code in (3, 5)
    assert alone("status").code == 3
    found = alone("doctor", "--json")
    assert found.code == 0


def test_a_server_that_says_nothing_useful(
    alone: Retort, monkeypatch: pytest.MonkeyPatch, teacher: ScriptedServer
) -> None:
    monkeypatch.setenv("RETORT_URL", f"{teacher.url}/v1/models?x=")
    wrong = alone("jobs", "list")
    assert (wrong.code, "RETORT_URL" in wrong.err) == (2, True)


@pytest.mark.parametrize(
    ("key", "code", "told"),
    [
        ("rtk_unknown", 4, "not known"),
        ("sk-other", 4, "begin with rtk_"),
        ("two words", 2, "RETORT_API_KEY"),
        ("", 2, "RETORT_API_KEY"),
    ],
)
def test_a_wrong_key(
    retort: Retort, monkeypatch: pytest.MonkeyPatch, key: str, code: int, told: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RETORT_API_KEY", key)
    done = retort(*words)
    assert (done.code, told in done.err, done.out) == (code, True, ""), done.err


@pytest.mark.parametrize("content", ["", "two words\n", "\x07\n", "é\n"])
def test_a_key_file_that_holds_none(
    alone: Retort, tmp_path: Path, content: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin.key").write_text(content)
    done = alone(*words)
    assert (done.code, "admin.key holds no key" in done.err) == (4, True), done.err


def test_a_reader_may_not_write(retort: Retort, monkeypatch: pytest.MonkeyPatch) -> None:
    key = retort("keys", "create", "for reading", "--role", "reader", "--json").json["secret"]
    monkeypatch.setenv("RETORT_API_KEY", key)
    assert retort("jobs", "list").code == 0
    refused = retort("keys", "list", "--json")
    assert (refused.code, refused.problem["error"]) == (4, "forbidden")


def test_keys(retort: Retort, monkeypatch: pytest.MonkeyPatch) -> None:
    made = retort("keys", "create", "[bold]a [name]", "--role", "writer")
    key_id, secret = made.out.split()[0], made.out.split()[-1]
    listed = retort("keys", "list")
    assert "[bold]a [name]" in listed.out
    assert secret not in listed.out
    assert retort("keys", "create", "x", "--role", "king").code == 2
    assert retort("keys", "revoke", key_id).out == f"{key_id} is revoked.\n"
    monkeypatch.setenv("RETORT_API_KEY", secret)
    assert retort("jobs", "list").code == 4


def test_teachers(retort: Retort, teacher: ScriptedServer) -> None:
    add = (
        "teachers",
        "add",
        "second",
        "--driver",
        "openai",
        "--model",
        "scripted",
        "--license",
        "Apache-2.0",
    )
    made = retort(*add, "--base-url", f"{teacher.url}/v1", "--option", "provider=vllm")
    assert (made.code, "reachable: yes" in made.out) == (0, True), made.err
    again = retort(*add, "--base-url", f"{teacher.url}/v1")
    assert (again.code, "named 'second' already" in again.err) == (4, True)
    listed = retort("teachers", "list")
    assert "second" in listed.out
    assert f"{teacher.url}/v1" in listed.out
    probed = retort("teachers", "probe", "second", "--json")
    assert probed.json["capabilities"]["max_top_logprobs"] > 0
    assert set(retort("teachers", "drivers", "--json").json) >= {"embedded", "openai"}


def test_a_teacher_that_does_not_answer_is_registered_and_told(retort: Retort) -> None:
    url = f"http://127.0.0.1:{processes.free_port()}/v1"
    made = retort("teachers", "add", "silent", "--driver", "openai", "--model", "m", "--base-url", url)
    assert (made.code, "cannot be reached" in made.out) == (1, True)
    assert retort("teachers", "probe", "silent").code == 1
    unasked = retort(
        "teachers", "add", "unasked", "--driver", "openai", "--model", "m", "--base-url", url, "--no-probe"
    )
    assert (unasked.code, "never probed" in unasked.out) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("n", "--driver", "openai", "--model", "m", "--base-url", "ftp://x"), 2, "base_url"),
        (
            ("n", "--driver", "openai", "--model", "m", "--base-url", "http://169.254.169.254/v1"),
            4,
            "link-local",
        ),
        (
            ("n", "--driver", "openai", "--model", "m", "--base-url", "http://u:p@127.0.0.1/v1"),
            4,
            "secret_ref",
        ),
        (("n", "--driver", "floppy", "--model", "m"), 4, "no driver 'floppy'; known: embedded, openai"),
        (("a b", "--driver", "openai", "--model", "m"), 2, "name"),
        (("n", "--driver", "openai", "--model", "m", "--secret", "sk-12345"), 2, "secret_ref"),
        (("n", "--driver", "openai", "--model", "m", "--license", "GPL-17"), 2, "GPL-17"),
        (("n", "--driver", "embedded", "--model", "other"), 4, "has one model"),
        (("n", "--model", "m"), 2, "--driver"),
        (("n", "--driver", "openai", "--model", "m", "--option", "provider"), 2, "NAME=VALUE"),
        (
            (
                "n",
                "--driver",
                "openai",
                "--model",
                "m",
                "--base-url",
                "http://127.0.0.1/v1",
                "--option",
                "x=1",
            ),
            4,
            "x",
        ),
    ],
)
def test_what_is_no_teacher(retort: Retort, words: tuple[str, ...], code: int, told: str) -> None:
    done = retort("teachers", "add", *words)
    assert (done.code, told in done.err) == (code, True), done.err


def test_doctor_on_a_healthy_service(retort: Retort, service: Service) -> None:
    found = {row["check"]: row for row in retort("doctor", "--json").json}
    assert found["service"]["state"] == "fine"
    assert found["key"]["state"] == "fine"
    assert found["teacher t"]["state"] in ("fine", "note")
    key = service.folder / "admin.key"
    key.chmod(0o644)
    done = retort("doctor")
    key.chmod(0o600)
    assert done.code == 1
    assert f"chmod 600 {key}" in done.out


def test_doctor_asks_every_teacher(retort: Retort, teacher: ScriptedServer) -> None:
    teacher.change(faults=[])
    rows = {row["check"]: row for row in retort("doctor", "--probe", "--json").json}
    assert rows["teacher t"]["state"] == "fine"
    assert "top logprobs" in rows["teacher t"]["found"]


def test_doctor_where_nothing_is(alone: Retort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = alone("doctor")
    assert done.code == 0, "a fresh installation is not a sick one"
    assert "`retort up` makes it" in done.out
    (tmp_path / "data").write_text("a file")
    assert "is a file" in alone("doctor").out
    assert alone("doctor").code == 1
    monkeypatch.setenv("RETORT_DATABASE_URL", f"postgresql://u:hush@127.0.0.1:{processes.free_port()}/d")
    monkeypatch.setenv("RETORT_BROKER_URL", f"redis://:hush@127.0.0.1:{processes.free_port()}/0")
    done = alone("doctor")
    assert "✗ database: postgresql://u:***@127.0.0.1" in done.out
    assert "mend RETORT_BROKER_URL" in done.out
    assert "hush" not in done.out + done.err


def test_doctor_finds_a_schema_that_is_behind(
    alone: Retort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RETORT_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    (tmp_path / "other.db").touch()
    done = alone("doctor")
    assert (done.code, "retort db upgrade" in done.out) == (1, True)
    upgraded = alone("db", "upgrade", "--json")
    assert upgraded.code == 0
    assert upgraded.json["key_file"] == str(tmp_path / "data" / "admin.key")
    assert alone("doctor").code == 0
    again = alone("db", "upgrade")
    assert "The first project's key" not in again.out


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RETORT_PORT", "many", "RETORT_PORT: Input should be a valid integer"),
        ("RETORT_PROT", "1", "there is no RETORT_PROT; did you mean RETORT_PORT?"),
        ("RETORT_ENGINE__MAX_INFLIGHT", "1", "did you mean RETORT_ENGINE__MAX_IN_FLIGHT?"),
        ("RETORT_DATABASE_URL", "mysql://u:hush@h/d", "RETORT_DATABASE_URL: mysql is no database"),
    ],
)
@pytest.mark.parametrize("command", [("doctor",), ("up",), ("jobs", "list"), ("worker",), ("serve",)])
def test_a_broken_setting(
    alone: Retort, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    done = alone(*command)
    assert (done.code, told in done.err) == (2, True), done.err
    assert "hush" not in done.err


def test_a_database_that_is_away(alone: Retort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_DATABASE_URL", f"postgresql://u:hush@127.0.0.1:{processes.free_port()}/d")
    done = alone("db", "upgrade", "--json")
    assert (done.code, done.problem["error"]) == (3, "database")
    assert "hush" not in done.err


def test_usage(alone: Retort) -> None:
    assert alone("--help").code == 0
    assert "The main job" in alone("-h").out
    assert (alone().code, alone("nonsense").code, alone("jobs", "list", "--nonsense").code) == (2, 2, 2)
    assert alone("version").code == 0
    described = alone("openapi")
    assert json.loads(described.out)["info"]["title"] == "Retort"


@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_a_reader_that_leaves_is_no_fault(service: Service, reader: str, retort: Retort) -> None:
    command = f"{sys.executable} -m app.cli openapi | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_projects_default_licence(retort: Retort, service: Service, tmp_path: Path) -> None:
    before = service.call("GET", "/v1/project")["default_license"]
    assert "prompts that name no licence are NOASSERTION" in retort("project", "default-license", "none").out
    try:
        licensed = '{"prompt": "With one of its own.", "license": "CC0-1.0"}'
        (tmp_path / "a.jsonl").write_text(f'"Without one, {tmp_path}."\n{licensed}\n')
        bare = retort("submit", "a.jsonl", "--teacher", "t", "--watch")
        assert (bare.code, "`retort project default-license`" in bare.err) == (0, True)
        job = retort("jobs", "list", "--most", 1, "--json").json[0]["id"]
        refused = retort("export", job, "--to", "out", "--json")
        assert (refused.code, refused.problem["error"]) == (4, "policy-refusal")
        dropped = retort("export", job, "--to", "out", "--drop-refused", "--json")
        assert (dropped.code, dropped.json["n_rows"]) == (0, 1)
        assert "CC0-1.0" in retort("project", "default-license", "cc0-1.0").out
        assert retort("project", "show", "--json").json["default_license"] == "CC0-1.0"
        (tmp_path / "b.jsonl").write_text(f'"With one, {tmp_path}."\n')
        assert "taken for CC0-1.0" in retort("submit", "b.jsonl", "--teacher", "t").err
        assert retort("project", "default-license", "GPL-17").code == 4
    finally:
        service.call("PATCH", "/v1/project", json={"default_license": before})
