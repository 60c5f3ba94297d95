"""Addresses that strangers wrote: public https hosts alone, at every redirect, small and soon. No network: a stand-in for it."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from mmalign import fetching, media
from mmalign.fetching import Refused, fetch, is_public
from mmalign.media import Broken, Limits

PUBLIC = "93.184.216.34"


class Answer(io.BytesIO):
    def __init__(self, body=b"", status=200, **headers):
        super().__init__(body)
        self.status, self.headers = status, headers

    def getheader(self, name):
        return self.headers.get(name.replace("-", "_"))


@pytest.fixture
def hosts(monkeypatch):
    """Names and their addresses, answers by host, and which address each was asked at."""
    network = {"names": {"good.org": [PUBLIC]}, "answers": {}, "asked": []}

    def looked_up(host, port, type=0):
        if host not in network["names"]:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, type, 0, "", (address, port)) for address in network["names"][host]]

    def answer(host, port, path, address, end):
        network["asked"].append((host, path, address))
        return network["answers"][host + path]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(fetching, "_answer", answer)
    return network


def test_a_public_host_is_read_at_the_address_that_was_checked(hosts):
    hosts["answers"]["good.org/a.png?x=1"] = Answer(b"bytes")
    assert fetch("https://good.org/a.png?x=1", most=10, seconds=300) == b"bytes"
    assert hosts["asked"] == [("good.org", "/a.png?x=1", PUBLIC)]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "::1",
        "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254", "::127.0.0.1", "2001:0:7f00:1::", "2001:db8::1", "nonsense",
        "192.0.0.192", "192.0.0.8", "192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "198.18.0.1", "203.0.113.9",
        "64:ff9b:1::1", "64:ff9b:1:ffff::5db8:d822", "64:ff9b::192.0.0.192", "::ffff:0:127.0.0.1", "::ffff:0:93.184.216.34",
        "::ffff:192.0.0.192", "fec0::1", "feff::1", "100::1", "5f00::1", "3fff::1", "2001:20::1", "2620:4f:8000::1", "2002:c000:c0::1",
        "255.255.255.255", "2001:0:5db8:d822::1", "::93.184.216.34", "4000::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address, hosts):
    assert not is_public(address)
    hosts["names"]["evil.org"] = [PUBLIC, address]  # one of several is enough
    with pytest.raises(Refused, match="not a public address"):
        fetch("https://evil.org/", most=10, seconds=300)
    assert hosts["asked"] == []


def test_addresses_that_are_public():
    assert is_public(PUBLIC) and is_public("2606:2800:220:1:248:1893:25c8:1946") and is_public(f"::ffff:{PUBLIC}")
    assert (
        is_public(f"64:ff9b::{PUBLIC}") and is_public("2002:5db8:d822::1") and is_public("2001:4860:4860::8888") and is_public("192.0.1.1")
    )


@pytest.mark.parametrize(
    "url",
    ["http://good.org/a", "ftp://good.org/a", "file:///etc/passwd", "https://me:secret@good.org/a", "https:///a", "https://good.org:x/a"],
)
def test_addresses_of_another_kind(url, hosts):
    with pytest.raises(Refused):
        fetch(url, most=10, seconds=300)
    assert hosts["asked"] == []


@pytest.mark.parametrize("place", ["http://good.org/b", "https://inside.org/", "https://127.0.0.1/", "file:///etc/passwd"])
def test_redirects_are_checked_too(place, hosts):
    hosts["names"] |= {"inside.org": ["10.0.0.1"], "127.0.0.1": ["127.0.0.1"]}
    hosts["answers"]["good.org/a"] = Answer(status=302, Location=place)
    with pytest.raises(Refused):
        fetch("https://good.org/a", most=10, seconds=300)
    assert [host for host, _, _ in hosts["asked"]] == ["good.org"]


def test_redirects_end(hosts):
    hosts["answers"]["good.org/a"] = Answer(status=302, Location="/a")
    with pytest.raises(Refused, match="more than 5 redirects"):
        fetch("https://good.org/a", most=10, seconds=300)
    hosts["answers"] |= {"good.org/b": Answer(status=301, Location="/c"), "good.org/c": Answer(b"there")}
    assert fetch("https://good.org/b", most=10, seconds=300) == b"there"


def test_size_status_and_time(hosts):
    hosts["answers"] = {
        "good.org/said": Answer(b"x", Content_Length="99"), "good.org/long": Answer(b"x" * 11), "good.org/none": Answer(b""),
        "good.org/gone": Answer(b"x", status=404), "good.org/late": Answer(b"x"),
    }  # fmt: skip
    for path, match in (
        ("said", "99 bytes, takes at most 10"), ("long", "more than 10 bytes"), ("none", "empty"), ("gone", "answered 404"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=match) as error:
            fetch(f"https://good.org/{path}", most=10, seconds=300)
        assert "\n" not in str(error.value)
    with pytest.raises(Refused, match="no whole answer within"):
        fetch("https://good.org/late", most=10, seconds=-1)
    with pytest.raises(Refused) as error:
        fetch("https://nowhere.org/a?key=secret", most=10, seconds=300)
    assert "secret" not in str(error.value)


def test_the_connection_goes_to_the_pinned_address(monkeypatch):
    connected_to = {}

    def connected(where, timeout):
        connected_to["where"] = where
        raise OSError("stop here")

    monkeypatch.setattr(socket, "create_connection", connected)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, type=0: [(socket.AF_INET, type, 0, "", (PUBLIC, port))])
    with pytest.raises(Refused, match="OSError: stop here"):
        fetch("https://good.org/a", most=10, seconds=300)
    assert connected_to["where"] == (PUBLIC, 443)


CERTIFICATE = Path(__file__).parents[1] / "scripts/faults/good_org.pem"  # of good.org, by itself, for a hundred years; of use to nobody


@pytest.fixture
def server(monkeypatch):
    """``server(pieces, pause)`` is a host called good.org that says the pieces with pauses between them, by TLS."""
    threads, sent = [], []

    def start(pieces, pause=0.0, greet=True, bye=True):
        inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inside.load_cert_chain(CERTIFICATE)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.settimeout(300)

        def serve():
            plain, _ = listening.accept()
            with listening, plain, contextlib.suppress(OSError):
                plain.settimeout(300)
                if not greet:
                    for piece in pieces:
                        plain.sendall(piece)
                        sent.append(piece)
                        time.sleep(pause)
                    return
                with inside.wrap_socket(plain, server_side=True) as wire:
                    wire.recv(4096)
                    for piece in pieces:
                        wire.sendall(piece)
                        sent.append(piece)
                        time.sleep(pause)
                    if bye:
                        wire.unwrap()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        connect, context = socket.create_connection, ssl.create_default_context
        monkeypatch.setattr(socket, "create_connection", lambda where, timeout: connect(listening.getsockname(), timeout))
        monkeypatch.setattr(ssl, "create_default_context", lambda: context(cafile=CERTIFICATE))
        monkeypatch.setattr(fetching, "public_address", lambda host, port: PUBLIC)
        return threads[-1], sent

    yield start
    for thread in threads:
        thread.join(300)


def test_a_real_answer(server):
    server([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes"])
    assert fetch("https://good.org/a", most=10, seconds=300) == b"bytes"


def test_a_real_answer_without_a_length(server):
    server([b"HTTP/1.1 200 OK\r\n\r\n", b"by", b"tes"])
    assert fetch("https://good.org/a", most=10, seconds=300) == b"bytes"


DRIPS = {
    "header": [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 60, b"Content-Length: 1\r\n\r\nx"],
    "one header": [b"HTTP/1.1 200 OK\r\nX: ", *[b"y"] * 60, b"\r\nContent-Length: 1\r\n\r\nx"],
    "status": [*[bytes([letter]) for letter in b"HTTP/1.1 200 " + b"O" * 50], b"\r\nContent-Length: 1\r\n\r\nx"],
    "body": [b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n", *[b"x"] * 60],
    "chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 60, b"0\r\n\r\n"],
    "informational": [*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 60, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"],
}


@pytest.mark.parametrize("what", DRIPS)
def test_the_time_counts_what_drips(what, server):
    """Each piece comes soon after the one before; all of them take six times the limit."""
    thread, sent = server(DRIPS[what], pause=0.05)
    with pytest.raises(Refused, match=r"no whole answer within 0\.5 seconds"):
        fetch("https://good.org/a", most=10_000, seconds=0.5)
    thread.join(300)
    assert len(sent) < 40, "nobody was listening any more"


def test_the_time_counts_a_greeting_that_drips(server):
    thread, sent = server([bytes([22, 3, 3, 0, 90]), *[b"x"] * 60], pause=0.05, greet=False)
    with pytest.raises(Refused, match=r"no whole answer within 0\.5 seconds"):
        fetch("https://good.org/a", most=10_000, seconds=0.5)
    thread.join(300)
    assert len(sent) < 40, "nobody was listening any more"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbytes"], "5 bytes of 9, then the answer ended"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nbytes"], "IncompleteRead"),
        ([b"HTTP/1.1 200 OK\r\nContent-Le"], "LineTooLong|an empty answer"),
        ([b"HTTP/1.1 2"], "BadStatusLine|RemoteDisconnected"),
        ([], "RemoteDisconnected|closed"),
    ],
)
def test_answers_that_are_cut_are_refused(pieces, words, server):
    server(pieces)
    with pytest.raises(Refused, match=words):
        fetch("https://good.org/a", most=100, seconds=300)


def test_an_answer_without_a_length_that_ends_without_a_word(server):
    server([b"HTTP/1.1 200 OK\r\n\r\n", b"half of it"], bye=False)
    with pytest.raises(Refused, match="SSLEOFError"):
        fetch("https://good.org/a", most=100, seconds=300)


def test_media_read_addresses_only_where_they_are_switched_on(hosts):
    with pytest.raises(Broken, match="an address, which is not read"):
        media.picture("https://good.org/a.png", Limits())
    hosts["answers"]["good.org/a.png"] = Answer(b"<html>")
    with pytest.raises(Broken, match=r"https://good.org/a.png: no image"):
        media.picture("https://good.org/a.png", Limits(urls=True))
    with pytest.raises(Broken, match="takes https addresses"):
        media.picture("http://good.org/a.png", Limits(urls=True))
