"""Which teacher addresses may be called: a guard against server-side request forgery.

Link-local addresses (cloud metadata lives there) never; loopback where the profile allows it; private ranges by an
allowlist. An address is judged when a teacher is registered (`check_address`) and again at each connection, on the
very address that is connected to (`app/teachers/transport.py`): a name that changes its mind in between wins nothing.
"""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.errors import InvalidInput, Unsupported

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds hand out credentials, beside the link-local 169.254.169.254: AWS, Google, Alibaba, Oracle.
_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192")
)
# IPv6 addresses whose last four bytes are an IPv4 address that a gateway connects to: RFC 6052, 8215, 4291 (2.5.5.1).
_CARRIES_IPV4 = tuple(ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))


@dataclass(frozen=True)
class TeacherAccess:
    """`allow_private`: networks in CIDR notation that teachers may live in though they are not public."""

    allow_loopback: bool = False
    allow_private: tuple[str, ...] = ()


def check_url(url: str | None, access: TeacherAccess) -> str:
    """The URL without a trailing slash. Looks nothing up: judges the form, and the host where it is a number."""
    if not url:
        raise InvalidInput("this driver needs base_url: the address of the teacher's API")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f"base_url is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidInput("base_url must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("base_url must not carry a user or a password: use secret_ref")
    if parts.query or parts.fragment:
        raise InvalidInput("base_url must not carry a query or a fragment")
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return url.rstrip("/")
    judge(literal, access)
    return url.rstrip("/")


def check_address(url: str | None, access: TeacherAccess) -> None:
    """`check_url`, and every address that the host's name stands for now. Blocks for the look-up.

    A name that cannot be looked up here passes: a worker elsewhere may know it, and judges it when it connects.
    """
    host = urlsplit(check_url(url, access)).hostname
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    for *_, place in found:
        judge(ipaddress.ip_address(str(place[0]).partition("%")[0]), access)


def judge(address: Address, access: TeacherAccess) -> None:
    """Raises `Unsupported`, naming the setting that would allow this address, if there is one."""
    if isinstance(address, ipaddress.IPv6Address) and (inner := _inner(address)) is not None:
        judge(inner, access)
        return
    if address in _METADATA:
        raise Unsupported(f"{address} hands out a cloud's credentials: teachers are never called there")
    if address.is_link_local:
        raise Unsupported(f"{address} is a link-local address: teachers are never called there")
    if address.is_unspecified or address.is_multicast:
        raise Unsupported(f"{address} is no address of a server")
    if address.is_loopback:
        if not access.allow_loopback:
            raise Unsupported(
                f"{address} is this machine itself: RETORT_ADDRESSES__ALLOW_LOOPBACK=true allows it"
            )
        return
    if address.is_global or any(_within(address, network) for network in access.allow_private):
        return
    raise Unsupported(
        f"{address} is a private address: RETORT_ADDRESSES__ALLOW_PRIVATE='[\"{_network_of(address)}\"]' allows it"
    )


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is really meant, if there is one."""
    if address.ipv4_mapped is not None or address.sixtofour is not None:
        return address.ipv4_mapped or address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if int(address) > 0xFFFF and any(address in network for network in _CARRIES_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _within(address: Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError as error:
        raise InvalidInput(
            f"RETORT_ADDRESSES__ALLOW_PRIVATE holds {network!r}, which is no network in CIDR notation"
        ) from error


def _network_of(address: Address) -> str:
    bits = 24 if address.version == 4 else 64
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))
