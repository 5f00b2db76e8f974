"""Which addresses a teacher may have. They come from an administrator, and still must not reach the inside of a network."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.errors import InvalidInput, TeacherUnavailable


@dataclass(frozen=True, slots=True)
class TeacherAccess:
    """What this installation allows. Link-local addresses (cloud metadata) are never allowed."""

    allow_loopback: bool = False
    allow_private: tuple[str, ...] = ()


def check_address(url: str, access: TeacherAccess) -> None:
    """Resolve the host and check every address behind it.

    Raises `InvalidInput` for an address that is not allowed, with the setting that allows it, and
    `TeacherUnavailable` for a name that does not resolve.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused(f"{url!r} is no http:// or https:// address")
    if parts.username or parts.password:
        raise _refused("an address carries no user or password: give a secret_ref")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TeacherUnavailable(f"the name {parts.hostname!r} does not resolve") from error
    for entry in found:
        _check(parts.hostname, ipaddress.ip_address(str(entry[4][0]).partition("%")[0]), access)


def _check(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, access: TeacherAccess) -> None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        if not access.allow_loopback:
            raise _refused(f"{host} is this machine: RETORT_ADDRESSES__ALLOW_LOOPBACK=true allows it")
        return
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        raise _refused(f"{host} is {address}, an address that no teacher has")
    if address.is_global:
        return
    if any(address in ipaddress.ip_network(network) for network in access.allow_private):
        return
    raise _refused(
        f"{host} is {address}, a private address: RETORT_ADDRESSES__ALLOW_PRIVATE names the networks allowed"
    )


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(reason, errors=[{"detail": reason, "pointer": "#/base_url"}])
