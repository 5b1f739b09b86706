"""Addresses of tracking stores, and the passwords in them: they open the connection, and nobody sees or stores them.

An address is made public at every entrance (option, variable, configuration, argument); what that takes out of it is
kept in the memory of this process for `connecting` alone.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

# The authority first, whose password ends at its last @; then a password with a slash, which no number of a port is.
_LOGIN = re.compile(
    r"^([a-z][a-z0-9+.-]*://)([^:/?#@]*)(?::([^/?#]*|(?!\d+[/?#])[^@]*))?@",
    re.IGNORECASE,
)
_LOGIN_ANYWHERE = re.compile(r"([a-z][a-z0-9+.-]*://[^:/?#@\s'\"]*):[^/?#\s'\"]*@", re.IGNORECASE)
# A path that is not absolute; three slashes go before it, four before one that is. Without a file: in memory.
_DATABASE_FILE = re.compile(r"^(sqlite(?:\+\w+)?:///)(?![/:]|file:)([^?]+)(.*)$", re.IGNORECASE | re.DOTALL)
_SECRET_NAME = re.compile(r"pass|pwd|token|secret|odbc_connect", re.IGNORECASE)
_SHORTEST_HIDDEN = 4  # a shorter word would take pieces out of any sentence

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"

_complete: dict[str, str] = {}  # public address -> as it was given
_secrets: set[str] = set()
_replaced: dict[str, str | None] = {}  # what stood in the environment before `connecting` put a login there


def absolute(address: str) -> str:
    """Return the address of a database file with its whole path; any other address is returned as it is.

    A relative path is taken from the working directory, a `~` at its beginning is the user's home.
    """
    found = _DATABASE_FILE.match(address)
    if not found:
        return address
    scheme, path, arguments = found.groups()
    return f"{scheme}{os.path.abspath(os.path.expanduser(path))}{arguments}"  # noqa: PTH100, PTH111 - text, not a Path


def public(address: str) -> str:
    """Return an address without its secrets and with a whole path, and remember the secrets for `connecting`.

    A server's login goes altogether, a database keeps its user, and arguments named like a password go. An address
    without secrets is returned as it is, but for a relative path (see `absolute`): what is kept of it has to mean the
    same in any folder.
    """
    address = absolute(address)
    bare, secrets = address, []
    if login := _LOGIN.match(address):
        scheme, user, password = login.groups()
        kept = "" if scheme.lower().startswith("http") or not user else f"{user}@"
        bare, secrets = scheme + kept + address[login.end() :], [password or ""]
    path, mark, query = bare.partition("?")
    if mark:
        arguments = query.split("&")
        secret = [argument for argument in arguments if _SECRET_NAME.search(argument.partition("=")[0])]
        if secret:
            secrets += [argument.partition("=")[2] for argument in secret]
            bare = "?".join([path, *filter(None, ["&".join(a for a in arguments if a not in secret)])])
    if bare != address:
        _complete[bare] = address
        words = {form for word in secrets for form in (word, unquote(word))}
        _secrets.update(word for word in words if len(word) >= _SHORTEST_HIDDEN)
    return bare


def connecting(address: str) -> str:
    """Return what MLflow is to be given for a public address.

    The secrets are those that the address was given with in this process, else those of $MLFLOW_TRACKING_URI where that
    names the same store. A server's login goes where MLflow looks for one, into this process's environment, and is
    taken out again for the next address, so that no server is sent another's password.
    """
    bare = public(address)
    if bare not in _complete:
        public(os.environ.get("MLFLOW_TRACKING_URI", ""))
    complete = _complete.get(bare, bare)
    for name, before in _replaced.items():
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
    _replaced.clear()
    login = _LOGIN.match(complete)
    if login is None or not login[1].lower().startswith("http"):
        return complete
    for name, value in ((USER, login[2]), (PASSWORD, login[3])):
        if value:
            _replaced[name] = os.environ.get(name)
            os.environ[name] = unquote(value)
    return login[1] + complete[login.end() :]


def hide_secrets(text: str) -> str:
    """Return a text, of an error above all, with every known secret and every password in an address as `***`."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _LOGIN_ANYWHERE.sub(r"\1:***@", text)


def storage_address(address: str) -> str:
    """Return an address that may be written and shown; ValueError where it has no scheme, or holds a password."""
    if "://" not in address:
        raise ValueError("expected an address such as s3://BUCKET/FOLDER; a folder that all nodes share is --storage")
    if public(address) != address:
        raise ValueError(
            "credentials do not belong into the address: give them to every node by its role or its environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    return address
