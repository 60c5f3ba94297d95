"""A folder onto the hub, through huggingface_hub: what could go wrong is asked before anything expensive is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmalign.matching import message_of
from mmalign.types import UserError

TAKES = "takes a token of yours that may write, by `hf auth login` or in HF_TOKEN"


def may_push(repo: str) -> None:
    """Errors: UserError for what is no ORGANISATION/NAME, for no token or one that may not write there, and where no hub is reached."""
    from huggingface_hub.utils import validate_repo_id

    owner, slash, name = repo.partition("/")
    with _said(repo):
        validate_repo_id(repo)
    if not (slash and owner and name):
        raise UserError(f"--push: got {repo!r}, takes ORGANISATION/NAME, or your own name for the first")
    with _said(repo):
        me = _api().whoami()
    role = ((me.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UserError(f"--push: the token of {me['name']} may only read; {TAKES}")
    places = [str(me["name"]), *(str(org.get("name")) for org in me.get("orgs") or [])]
    if owner not in places:
        raise UserError(f"--push: {me['name']} is no member of {owner}; takes one of {', '.join(places)}")


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """All files of a folder as one commit to a model's repository, which is made where it is not there yet; returns its address.

    Errors: UserError as of ``may_push``, and for a repository that is refused.
    """
    with _said(repo):
        _api().create_repo(repo, private=private, exist_ok=True)
        done = _api().upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    return str(done.repo_url)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@contextmanager
def _said(repo: str) -> Iterator[None]:
    """Whatever the hub's library raises, as a line with what helps."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"--push: found no token; {TAKES}") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError("--push: HF_HUB_OFFLINE is set; takes an environment without it") from error
    except errors.HFValidationError as error:
        raise UserError(f"--push: got {repo!r}, takes ORGANISATION/NAME: {message_of(error)}") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        helps = TAKES if code in (401, 403) else "takes a repository that exists, or that you may make"
        raise UserError(f"--push {repo}: the hub answered {code}; {helps}: {message_of(error)}") from error
    except OSError as error:  # no network, no such host
        raise UserError(f"--push {repo}: no hub is reached: {message_of(error)}") from error
