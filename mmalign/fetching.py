"""Files from addresses that a stranger may have written: https alone, public hosts alone, checked at every redirect, small and soon.

A name is looked up once, every address that it has must be a public one, and the connection is made to the address that was checked: a
name that means another machine a moment later (DNS rebinding) leads nowhere. Proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import math
import socket
import ssl
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

from mmalign.types import UserError

REDIRECTS = 5
PIECE = 2**16
AGENT = "mmalign"


class Refused(UserError):
    """An address that is not read; one line says why."""


def fetch(url: str, *, most: int, seconds: float) -> bytes:
    """What is at an address, at most ``most`` bytes of it, within ``seconds`` in all.

    url: https, without a user name; public hosts alone. most: bytes. seconds: in all.

    The time counts connecting, greeting, every wait for a header or a piece; looking names up has the system's own limit beside.

    Errors: Refused for another scheme than https, user names, hosts that are not public (also after a redirect), more than five
    redirects, other answers than 200, too much, too slow, an answer that ends before its end.
    """
    end, place = time.monotonic() + seconds, url
    for _ in range(REDIRECTS + 1):
        host, port, path = _parts(place, url)
        address = public_address(host, port)
        try:
            with contextlib.closing(_answer(host, port, path, address, end)) as answer:
                if answer.status in (301, 302, 303, 307, 308) and answer.getheader("Location"):
                    place = urljoin(place, str(answer.getheader("Location")))
                    continue
                if answer.status != 200:
                    raise Refused(f"{_shown(url)}: answered {answer.status}")
                return _body(answer, url, most, end)
        except TimeoutError as error:
            raise Refused(f"{_shown(url)}: no whole answer within {seconds:g} seconds") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(f"{_shown(url)}: {type(error).__name__}: {' '.join(str(error).split())[:120]}") from error
    raise Refused(f"{_shown(url)}: more than {REDIRECTS} redirects")


def public_address(host: str, port: int) -> str:
    """The first address of a host, once all that it has are public. Errors: Refused where one is not, or there is none."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"https://{host[:80]}: no such host") from error
    addresses = [str(entry[4][0]) for entry in entries]
    for address in addresses:
        if not is_public(address):
            raise Refused(f"https://{host[:80]}: {address} is not a public address")
    if not addresses:
        raise Refused(f"https://{host[:80]}: no such host")
    return addresses[0]


# What IANA's registries of special-purpose addresses take out, and translations whose other end is a network's own business. Written down,
# because what ``is_global`` knows depends on the version of Python.
NOT_PUBLIC = [
    ipaddress.ip_network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/3", "2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20",
    )
]  # fmt: skip
UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA gives out of IPv6: no loopback, fc00::/7, fe80::/10, fec0::/10, ff00::/8
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, shared, reserved or multicast, also where
    an IPv4 address is written inside of an IPv6 one (mapped, 6to4, NAT64)."""
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False  # not an address at all
    if isinstance(number, ipaddress.IPv6Address):
        if number.ipv4_mapped is not None:
            return is_public(str(number.ipv4_mapped))
        if number in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)))
        if number not in UNICAST or (number.sixtofour is not None and not is_public(str(number.sixtofour))):
            return False
    return number.is_global and not any(number in block for block in NOT_PUBLIC)  # the first: what a newer Python knows of


def _parts(place: str, url: str) -> tuple[str, int, str]:
    """Host, port and path of an address. Errors: Refused for what is no plain https address."""
    try:
        parts = urlsplit(place)
        host, port = parts.hostname, parts.port or 443
    except ValueError as error:
        raise Refused(f"{_shown(url)}: not an address") from error
    if parts.scheme != "https" or not host or parts.username is not None or parts.password is not None:
        where = "" if place == url else f" (redirected to {_shown(place)})"
        raise Refused(f"{_shown(url)}{where}: takes https addresses without a user name")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or any(letter <= " " for letter in path):
        raise Refused(f"{_shown(url)}: holds letters that an address cannot hold")
    return host, port, path


class _Wire(ssl.SSLSocket):
    """A connection whose waits end at one moment, ``end``, however little comes each time."""

    end = math.inf

    def recv_into(self, *arguments: Any) -> int:
        self.settimeout(_left(self.end))
        return super().recv_into(*arguments)


def _answer(host: str, port: int, path: str, address: str, end: float) -> http.client.HTTPResponse:
    """The answer of a host at the address that was checked, whatever its name means by now; the certificate is the name's."""
    context = ssl.create_default_context()
    context.sslsocket_class = _Wire
    connection = http.client.HTTPSConnection(host, port)
    with contextlib.ExitStack() as closed_on_errors:
        plain = closed_on_errors.enter_context(socket.create_connection((address, port), _left(end)))
        plain.settimeout(_left(end))  # of the whole greeting
        wire = closed_on_errors.enter_context(context.wrap_socket(plain, server_hostname=host, suppress_ragged_eofs=False))
        wire.end = end  # type: ignore[attr-defined]
        wire.settimeout(_left(end))
        connection.sock = wire
        connection.request("GET", path, headers={"User-Agent": AGENT, "Accept-Encoding": "identity", "Connection": "close"})
        answer = connection.getresponse()
        closed_on_errors.pop_all()
    return answer


def _body(answer: http.client.HTTPResponse, url: str, most: int, end: float) -> bytes:
    length = answer.getheader("Content-Length")
    size = int(length) if length is not None and length.isdigit() else None
    if size is not None and size > most:
        raise Refused(f"{_shown(url)}: {size} bytes, takes at most {most}")
    body = bytearray()
    while piece := answer.read1(PIECE):
        body += piece
        _left(end)
        if len(body) > most:
            raise Refused(f"{_shown(url)}: more than {most} bytes")
    if not body:
        raise Refused(f"{_shown(url)}: an empty answer")
    if size is not None and len(body) < size:
        raise Refused(f"{_shown(url)}: {len(body)} bytes of {size}, then the answer ended")
    return bytes(body)


def _left(end: float) -> float:
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _shown(url: str) -> str:
    """An address as a message shows it: short, and without a query, which may hold a secret."""
    return url.partition("?")[0][:120]
