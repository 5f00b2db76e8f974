"""docker-compose.yml without an engine: the specification, our settings, our commands, and what the design asks."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from app.settings import Settings, setting_names

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
NEEDED = {"POSTGRES_PASSWORD": "only-for-this-test"}


def interpolated(text: str, variables: dict[str, str]) -> str:
    """What Compose makes of ${NAME:-default} and ${NAME:?why}. Raises KeyError for a variable that must be set."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found["name"], found["kind"], found["rest"]
        if variables.get(name):
            return variables[name]
        if kind != ":-":
            raise KeyError(f"{name}: {rest}")
        return rest

    return re.sub(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\}", value, text)


COMPOSE: dict[str, Any] = yaml.safe_load(interpolated(TEXT, NEEDED))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("api", "worker", "migrate")


def test_it_is_what_the_compose_specification_allows() -> None:
    parsed = PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    assert set(parsed.service_names()) == set(SERVICES)


def test_a_missing_password_is_said() -> None:
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD: set it"):
        interpolated(TEXT, {})


@pytest.mark.parametrize("service", OURS)
def test_every_setting_that_it_names_exists(service: str) -> None:
    named = {name for name in SERVICES[service]["environment"] if name.startswith("RETORT_")}
    assert named
    assert named <= set(setting_names())


@pytest.mark.parametrize("service", OURS)
def test_every_setting_has_a_value_that_the_settings_take(service: str) -> None:
    """The service's own environment, and nothing of this machine's, read by the settings in another process."""
    environment = {name: str(value) for name, value in SERVICES[service]["environment"].items()}
    script = "from app.settings import Settings; print(Settings(_env_file=None).model_dump_json())"
    read = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    settings = json.loads(read.stdout)
    assert settings["profile"] == "scaled"
    assert settings["data_dir"] == "/var/lib/retort"
    assert settings["addresses"]["allow_private"] == [
        COMPOSE["networks"]["default"]["ipam"]["config"][0]["subnet"]
    ]


@pytest.mark.parametrize("service", OURS)
def test_every_command_is_one_of_ours_with_its_options(service: str) -> None:
    """`--help` last: the options before it are parsed, nothing runs."""
    words = [*SERVICES[service]["command"], "--help"]
    retort = Path(sys.executable).parent / "retort"
    shown = subprocess.run([retort, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert words[0] in shown.stdout


def test_the_worker_is_given_time_to_finish() -> None:
    grace = SERVICES["worker"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > Settings.model_fields["engine"].default.grace_seconds


def test_the_address_of_the_database_and_of_the_broker_is_a_service() -> None:
    for variable, service in (("RETORT_DATABASE_URL", "postgres"), ("RETORT_BROKER_URL", "redis")):
        found = re.search(r"[@/](\w+):\d+/", SERVICES["api"]["environment"][variable])
        assert found
        assert found[1] == service
        assert service in SERVICES


def test_whatever_is_waited_for_can_become_true() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}"
            else:
                assert SERVICES[other]["restart"] == "no", f"{name} waits for the end of {other}"


def test_everything_that_answers_has_a_health_check() -> None:
    assert [name for name in SERVICES if "healthcheck" not in SERVICES[name]] == ["worker", "migrate"]


def test_redis_evicts_nothing() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_only_loopback_is_published() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_vllm_has_the_gpu_in_one_profile_and_none_in_the_other() -> None:
    (device,) = SERVICES["vllm"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert SERVICES["vllm"]["profiles"] == ["gpu"]
    assert SERVICES["vllm-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in SERVICES["vllm-cpu"]
    assert SERVICES["vllm"]["command"] == SERVICES["vllm-cpu"]["command"]


def test_images_are_pinned_and_volumes_are_declared() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d", tag), f"{name} has no version: {service['image']}"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).is_dir() if source.startswith("./") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_vllm_has_the_compact_route(name: str) -> None:
    """Its folder is mounted where the server's Python looks, and the class that is named is in it."""
    service = SERVICES[name]
    (mount,) = [volume for volume in service["volumes"] if volume.startswith("./")]
    source, target, mode = mount.split(":")
    assert (service["environment"]["PYTHONPATH"], mode) == (target, "ro")
    (middleware,) = [word for word in service["command"] if word.startswith("--middleware=")]
    package, _, made = middleware.partition("=")[2].rpartition(".")
    assert made in (ROOT / source / package / "__init__.py").read_text()
    assert "VLLM_API_KEY" in service["environment"]


def test_the_image_installs_from_a_lock_and_runs_as_a_user() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    allowed = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"
    }
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"--require-hashes .*-r requirements-s3\.lock", dockerfile)
    assert re.search(r"^USER retort$", dockerfile, re.MULTILINE)
    assert 'ENTRYPOINT ["retort"]' in dockerfile
