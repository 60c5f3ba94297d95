"""A server of rewards over https, and who believes it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.serving.app import Serve, application
from mmalign.serving.listening import bound
from mmalign.types import UserError

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBbjCCAROgAwIBAgIBATAKBggqhkjOPQQDAjAXMRUwEwYDVQQDDAxtbWFsaWdu
IHRlc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBcxFTATBgNV
BAMMDG1tYWxpZ24gdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABM7te7K+
dvosjLwy79AWobXtpaqKcIudU92rxGoJxHE7rldGSQKv6vlUrVR7EctUSrSWNCYC
iDNSPI9CsH6H/7ajTjBMMBoGA1UdEQQTMBGHBH8AAAGCCWxvY2FsaG9zdDAPBgNV
HRMBAf8EBTADAQH/MB0GA1UdDgQWBBRdj9vJ4djAVgMX9O8zar+YrjvDlDAKBggq
hkjOPQQDAgNJADBGAiEAyd6aQC1TSdlH+lzr/DwV2XJ3c5lGSKQP/+HA6V8LZU0C
IQD1/5wjAHXo+tGV19ftBTb7B+jU8rD1r9+ICIuDHY4NCg==
-----END CERTIFICATE-----
"""  # of 127.0.0.1, by itself, from 2020 to 2120
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg2EyCpg/k18JtkILo
Gxc9ixkbG2FV395BqUhrsZL7KSGhRANCAATO7Xuyvnb6LIy8Mu/QFqG17aWqinCL
nVPdq8RqCcRxO65XRkkCr+r5VK1UexHLVEq0ljQmAogzUjyPQrB+h/+2
-----END PRIVATE KEY-----
"""
ONCE = {"failures": 1, "retries": 0, "backoff": 0.0}


def test_only_who_is_vouched_for_is_believed(tmp_path: Path) -> None:
    import uvicorn

    for name, text in (("certificate.pem", CERTIFICATE), ("key.pem", KEY)):
        (tmp_path / name).write_text(text)
    app = application({"letters": lambda outputs, prompts: [float(len(text)) for text in outputs]}, Serve(), token=None)
    settings = {"ssl_certfile": str(tmp_path / "certificate.pem"), "ssl_keyfile": str(tmp_path / "key.pem"), "log_level": "critical"}
    listening = bound("127.0.0.1", 0, "serve.port")
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{listening.getsockname()[1]}"
    known = mm.rewards.served(url=url, asking={**ONCE, "certificates_file": str(tmp_path / "certificate.pem")})
    assert known(["one", "three"], ["p", "p"]).tolist() == [3.0, 5.0]
    with pytest.warns(UserWarning):
        assert bool(torch.isnan(mm.rewards.served(url=url, asking=ONCE)(["one"], ["p"])).all())  # nobody vouches for it
    server.should_exit = server.force_exit = True
    thread.join(300)
    (tmp_path / "empty.pem").write_text("none")
    for file in ("empty.pem", "absent.pem"):
        with pytest.raises(UserError, match=r"asking\.certificates_file: got .*, takes a file of certificates \(PEM\)"):
            mm.rewards.served(url=url, asking={"certificates_file": str(tmp_path / file)})
