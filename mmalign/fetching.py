"""Files from addresses that a stranger may have written: https alone, public hosts alone, checked at every redirect, small and soon.

A name is looked up once, every address that it has must be a public one, and the connection is made to the address that was checked: a
name that means another machine a moment later (DNS rebinding) leads nowhere. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urljoin, urlsplit

from mmalign.types import UserError

REDIRECTS = 5
PIECE = 2**16
AGENT = "mmalign"


class Refused(UserError):
    """An address that is not read; one line says why."""


def fetch(url: str, *, most: int, seconds: float) -> bytes:
    """What is at an address, at most ``most`` bytes of it, within ``seconds`` in all.

    Errors: Refused for another scheme than https, user names, hosts that are not public (also after a redirect), more than five
    redirects, other answers than 200, too much, too slow.
    """
    end, place = time.monotonic() + seconds, url
    for _ in range(REDIRECTS + 1):
        host, port, path = _parts(place, url)
        address = public_address(host, port)
        try:
            answer = _asked(host, port, path, address, end)
            if answer.status in (301, 302, 303, 307, 308) and answer.getheader("Location"):
                place = urljoin(place, str(answer.getheader("Location")))
                answer.close()
                continue
            if answer.status != 200:
                raise Refused(f"{_shown(url)}: answered {answer.status}")
            return _read(answer, url, most, end)
        except TimeoutError as error:
            raise Refused(f"{_shown(url)}: no whole answer within {seconds:g} seconds") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(f"{_shown(url)}: {type(error).__name__}: {' '.join(str(error).split())[:120]}") from error
    raise Refused(f"{_shown(url)}: more than {REDIRECTS} redirects")


def public_address(host: str, port: int) -> str:
    """The first address of a host, once all that it has are public. Errors: Refused where one is not, or there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"https://{host[:80]}: no such host") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise Refused(f"https://{host[:80]}: {address} is not a public address")
    if not addresses:
        raise Refused(f"https://{host[:80]}: no such host")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, shared, reserved or multicast, also where
    an IPv4 address is written inside of an IPv6 one (mapped, 6to4, Teredo, NAT64)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False  # not an address at all
    if isinstance(found, ipaddress.IPv6Address):
        inner = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in ipaddress.ip_network("64:ff9b::/96") or found in ipaddress.ip_network("::/96"):
            inner.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in inner):
            return False
    return found.is_global and not found.is_multicast


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


def _asked(host: str, port: int, path: str, address: str, end: float) -> http.client.HTTPResponse:
    """The answer of a host at the address that was checked, whatever its name means by now; the certificate is the name's."""
    connection = http.client.HTTPSConnection(host, port, timeout=_left(end))
    plain = socket.create_connection((address, port), _left(end))
    connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    connection.request("GET", path, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
    return connection.getresponse()


def _read(answer: http.client.HTTPResponse, url: str, most: int, end: float) -> bytes:
    told = answer.getheader("Content-Length")
    if told is not None and told.isdigit() and int(told) > most:
        raise Refused(f"{_shown(url)}: {told} bytes, takes at most {most}")
    found = bytearray()
    while piece := answer.read1(PIECE):
        found += piece
        _left(end)
        if len(found) > most:
            raise Refused(f"{_shown(url)}: more than {most} bytes")
    if not found:
        raise Refused(f"{_shown(url)}: an empty answer")
    return bytes(found)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _shown(url: str) -> str:
    """An address as a message shows it: short, and without a query, which may hold a secret."""
    return url.partition("?")[0][:120]
