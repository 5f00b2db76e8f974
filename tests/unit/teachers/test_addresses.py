"""Which addresses a teacher may have."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput, TeacherError, Unsupported
from app.teachers.addresses import TeacherAccess, check_address, check_url, judge

OPEN = TeacherAccess(allow_loopback=True, allow_private=("10.0.0.0/8", "fd00::/8"))
SHUT = TeacherAccess()


@pytest.mark.parametrize(
    ("address", "shut", "opened"),
    [
        ("93.184.216.34", True, True),
        ("2606:2800:220:1::", True, True),
        ("127.0.0.1", False, True),
        ("127.8.8.8", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("::ffff:10.1.2.3", False, True),
        ("fd12::1", False, True),
        ("192.168.1.1", False, False),
        ("172.16.0.1", False, False),
        ("100.64.0.1", False, False),
        ("198.18.0.1", False, False),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("2002:a9fe:a9fe::", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("::a9fe:a9fe", False, False),
        ("64:ff9b:1::a9fe:a9fe", False, False),
        ("64:ff9b::5db8:d822", True, True),
        ("2001:0:4136:e378:8000:63bf:5601:5601", False, False),
        ("100.100.100.200", False, False),
        ("fe80::1", False, False),
        ("fd00:ec2::254", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
        ("255.255.255.255", False, False),
    ],
)
def test_addresses(address: str, shut: bool, opened: bool) -> None:
    for access, allowed in ((SHUT, shut), (OPEN, opened)):
        if allowed:
            judge(ipaddress.ip_address(address), access)
        else:
            with pytest.raises(Unsupported):
                judge(ipaddress.ip_address(address), access)


def test_a_refusal_names_the_setting_that_would_allow_it() -> None:
    with pytest.raises(Unsupported, match="RETORT_ADDRESSES__ALLOW_LOOPBACK=true"):
        judge(ipaddress.ip_address("127.0.0.1"), SHUT)
    with pytest.raises(Unsupported, match=r"192\.168\.1\.0/24"):
        judge(ipaddress.ip_address("192.168.1.7"), SHUT)
    with pytest.raises(Unsupported, match="never"):
        judge(ipaddress.ip_address("169.254.169.254"), OPEN)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (None, "needs base_url"),
        ("", "needs base_url"),
        ("example.org/v1", "http:// or https://"),
        ("ftp://example.org", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("http://", "name a host"),
        ("http:///v1", "name a host"),
        ("http://user:password@example.org", "secret_ref"),
        ("http://example.org/v1?key=1", "query"),
        ("http://example.org/v1#x", "fragment"),
        ("http://example.org:port/", "not a URL"),
        ("http://example.org:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
    ],
)
def test_what_is_no_url_of_a_teacher(url: str | None, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        check_url(url, OPEN)


def test_a_url_loses_its_last_slash() -> None:
    assert check_url("https://example.org/v1/", SHUT) == "https://example.org/v1"
    assert check_url("http://[::1]:8000/v1", OPEN) == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://127.1/",
        "http://localhost/",
    ],
)
def test_every_spelling_of_this_machine_is_this_machine(url: str) -> None:
    """Those that are no plain number are looked up, as the connection does."""
    check_address(url, OPEN)
    with pytest.raises(Unsupported, match="this machine"):
        check_address(url, SHUT)


def test_a_name_that_cannot_be_looked_up_here_passes() -> None:
    check_address("http://no-such-host.invalid/v1", SHUT)


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_a_sentence(text: str) -> None:
    for url in (text, f"http://{text}", f"https://{text}/v1"):
        try:
            found = check_url(url, SHUT)
        except (InvalidInput, TeacherError) as error:
            assert error.detail  # noqa: PT017 - both outcomes are right
        else:
            assert found == url.rstrip("/")
