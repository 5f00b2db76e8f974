"""Prompts that begin alike go to one server, unless another one is much less busy."""

from collections import Counter

import pytest

from app.services.generate.replicas import Replica, nearest
from app.teachers.base import TeacherSpec

PREFIXES = [bytes([number]) * 16 for number in range(200)]


@pytest.fixture
def servers() -> list[Replica]:
    return [Replica(TeacherSpec("t", "openai", "m", base_url=f"http://10.0.0.{n}/v1")) for n in range(4)]


def test_each_prefix_has_a_server_and_each_server_its_part(servers: list[Replica]) -> None:
    home = {prefix: nearest(servers, prefix) for prefix in PREFIXES}
    assert all(nearest(servers[::-1], prefix) is one for prefix, one in home.items()), "in any order"
    counts = Counter(one.address for one in home.values())
    assert all(30 <= counts[one.address] <= 75 for one in servers)


def test_a_server_that_is_gone_moves_its_own_prefixes_only(servers: list[Replica]) -> None:
    for prefix in PREFIXES:
        before = nearest(servers, prefix)
        after = nearest(servers[1:], prefix)
        assert after is before or before is servers[0]


def test_a_busy_server_is_passed_over(servers: list[Replica]) -> None:
    for prefix in PREFIXES:
        home = nearest(servers, prefix)
        for one in servers:
            one.in_flight = 40
        home.in_flight = 54  # a quarter more than the others, and four
        assert nearest(servers, prefix) is home
        home.in_flight = 55
        other = nearest(servers, prefix)
        assert other is not home
        assert other.in_flight == 40
        for one in servers:
            one.in_flight = 0
