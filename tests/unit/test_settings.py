"""Settings: every one is described, and none that is wrong or misspelt passes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from app.settings import Settings, setting_names

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` of the developer's."""
    monkeypatch.chdir(tmp_path)


def read(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings()


def table(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The rows of the table in docs/settings.md."""
    for name, field in model.model_fields.items():
        variable, kind = f"{prefix}{name}".upper(), field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from table(kind, f"{variable}__")
            continue
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        yield f"| `{variable}` | {default} | {field.description} |"


def test_the_page_of_the_settings_lists_each_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `RETORT_")]
    assert rows == list(table(Settings, "RETORT_"))


def test_names_are_those_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(setting_names()) == len(set(setting_names())) >= 30
    given = read(monkeypatch, RETORT_PORT="9", RETORT_ENGINE__SHARD_SIZE="7")
    assert (given.port, given.engine.shard_size) == (9, 7)
    assert {"RETORT_PORT", "RETORT_ENGINE__SHARD_SIZE"} <= set(setting_names())


@pytest.mark.parametrize("name", ["RETORT_PROT", "RETORT_ENGINE__SHARDSIZE", "RETORT_ENGNE__SHARD_SIZE"])
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_misspelt_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, place: str) -> None:
    if place == ".env":
        Path(".env").write_text(f"{name}=1\n")
    else:
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings()


def test_other_programs_may_share_the_file_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("POSTGRES_PASSWORD=x\nRETORT_PUBLISHED_PORT=80\nRETORT_PORT=9\n")
    given = read(monkeypatch, RETORT_CACHE_DIR="/tmp/c", RETORT_TEST_ANYTHING="1", PORT="3")
    assert given.port == 9


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("RETORT_PORT=9\n")
    assert read(monkeypatch, RETORT_PORT="10").port == 10


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RETORT_DATABASE_URL", "mysql://h/d", "mysql is no database"),
        ("RETORT_DATABASE_URL", "retort.db", "not the URL of a database"),
        ("RETORT_DATABASE_URL", "postgresql://h:port/d", "not the URL of a database"),
        ("RETORT_DATABASE_URL", "postgresql://h", "names no database"),
        ("RETORT_DATABASE_URL", "sqlite://", "names no database"),
        ("RETORT_DATABASE_URL", "sqlite:///:memory:", "names no database"),
        ("RETORT_BROKER_URL", "localhost:6379", "begins with one of redis://"),
        ("RETORT_BROKER_URL", "http://h", "begins with one of redis://"),
        ("RETORT_URL", "127.0.0.1:8321", "http://127.0.0.1:8321"),
        ("RETORT_API_KEY", "rtk_a\nb", "one word"),
        ("RETORT_DEFAULT_LICENSE", "CC-BY", "CC-BY-4.0"),
        ("RETORT_ADDRESSES__ALLOW_PRIVATE", "10.0.0.0/99", "CIDR"),
        ("RETORT_WORKER_TEACHERS", '["a"', "no list"),
        ("RETORT_PORT", "70000", "65535"),
        ("RETORT_LOG_LEVEL", "verbose", "'debug'"),
        ("RETORT_ENGINE__LEASE_SECONDS", "0", "greater than 0"),
    ],
)
def test_a_wrong_value_says_what_is_wanted_and_keeps_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        read(monkeypatch, **{name: value})
    (problem,) = caught.value.errors()
    assert told in problem["msg"]


@pytest.mark.parametrize(
    "url", ["postgresql://u:hush@h/d", "postgresql+psycopg://u:hush@h:5/d", "sqlite:////a/b.db"]
)
def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    given = read(
        monkeypatch, RETORT_DATABASE_URL=url, RETORT_API_KEY="rtk_hush", RETORT_BROKER_URL="redis://:hush@h"
    )
    assert "hush" not in repr(given)
    assert given.database == url


@pytest.mark.parametrize(
    "written", ["10.0.0.0/8,172.16.0.0/12", "10.0.0.0/8 172.16.0.0/12", '["10.0.0.0/8", "172.16.0.0/12"]']
)
def test_lists_are_words_or_json(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    given = read(monkeypatch, RETORT_ADDRESSES__ALLOW_PRIVATE=written)
    assert given.addresses.allow_private == ("10.0.0.0/8", "172.16.0.0/12")
    assert read(monkeypatch, RETORT_WORKER_TEACHERS="").worker_teachers == ()


def test_the_default_licence_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, RETORT_DEFAULT_LICENSE="cc-by-4.0").default_license == "CC-BY-4.0"


def test_teachers_on_this_machine_are_for_the_embedded_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch).loopback_allowed
    assert not read(monkeypatch, RETORT_PROFILE="scaled").loopback_allowed
    assert read(monkeypatch, RETORT_ADDRESSES__ALLOW_LOOPBACK="true").loopback_allowed
