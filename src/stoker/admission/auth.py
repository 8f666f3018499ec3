"""Who is asking? Keys from headers, compared in constant time, against the configured ones and those of the keys file.

The file is read again when it changes, so that a key can be given or taken without a restart. A file that has become
wrong changes nothing: the keys before it stay, and the log says why.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from stoker.admission.keys import file_of, hash_of, read_keys, refuse_doubles
from stoker.config import GuardPolicy, KeyConfig, RateConfig, Scope, Settings
from stoker.errors import ConfigError, StokerError
from stoker.observability.audit import audit
from stoker.observability.logging import get_logger
from stoker.types import Principal

ANONYMOUS: Final = "anonymous"
_ALL_SCOPES: Final[frozenset[Scope]] = frozenset({"inference", "jobs", "admin"})
_ASKING: Final[frozenset[Scope]] = frozenset({"inference", "jobs"})
_NO_STAMP: Final = (-1, -1)
_log = get_logger("keys")


class Unauthorized(StokerError):
    """There is no key, or not one that is known here."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"
    headers = ((b"www-authenticate", b"Bearer"),)


class Forbidden(StokerError):
    """The key is known, and may not do this."""

    status = 403
    code = "permission_denied"
    type = "permission_error"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what that one may do. `models` empty means all; `key_name` is None for anonymous callers."""

    address: str = ""
    key_name: str | None = None
    scopes: frozenset[Scope] = _ASKING
    models: tuple[str, ...] = ()
    rate: RateConfig | None = None
    guard: GuardPolicy | None = None
    trusted: bool = False

    @property
    def principal(self) -> Principal:
        """The caller as other rooms know it. Keys have tenants of their own; whoever has none shares one."""
        return Principal(f"key:{self.key_name}" if self.key_name else ANONYMOUS, self.address)

    def require(self, scope: Scope) -> None:
        """Raise Forbidden when this caller lacks the scope."""
        if scope not in self.scopes:
            who = f"the key {self.key_name!r}" if self.key_name else "a caller without a key"
            raise Forbidden(f"{who} lacks the scope {scope!r}; ask the operator for a key that has it")

    def may_ask(self, model: str) -> bool:
        """Whether this caller may ask the model of that name."""
        return not self.models or model in self.models


class KeyRing:
    """The keys in force.

    Args:
        settings: keys, the keys file's place, and whether anonymous callers are served.

    Raises:
        ConfigError: the keys file is wrong, or a key is there twice.
    """

    def __init__(self, settings: Settings) -> None:
        self._configured = settings.keys
        self._file = file_of(settings)
        self._anonymous = settings.anonymous
        self._stamp = _stamp(self._file)
        self._keys: dict[str, KeyConfig] = {}
        self._in_use = False
        self._take_in()

    @property
    def required(self) -> bool:
        """Whether a key must be shown. An emptied keys file still counts: revoking the last key opens no door."""
        return self._in_use and not self._anonymous

    @property
    def in_use(self) -> bool:
        """Whether there are keys, or a file for them."""
        return self._in_use

    def caller(self, headers: Mapping[str, str], address: str, *, local: bool) -> Caller:
        """The caller of a request.

        Args:
            headers: the request's, by lower-case names.
            address: the client's, as far as proxies are believed.
            local: whether the connection comes from this machine and through no proxy.

        Raises:
            Unauthorized: no key where one is needed, or one that is not known or has expired.
        """
        if not self._in_use:
            # Nobody configured keys: then whoever is on this machine is its operator.
            return Caller(address, scopes=_ALL_SCOPES if local else _ASKING)
        shown = _shown_key(headers)
        if shown is None:
            if self.required:
                raise Unauthorized("an API key is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
            return Caller(address)
        digest = hash_of(shown)
        key = self._keys.get(digest)
        # The look-up is by a hash that nobody can steer; the comparison that decides takes the same time for all.
        if key is None or not hmac.compare_digest(digest, key.hash):
            raise Unauthorized("this API key is not known here, or was revoked")
        if key.expires is not None and key.expires <= datetime.now(UTC):
            raise Unauthorized(f"the API key {key.name!r} expired at {key.expires.isoformat()}")
        return Caller(address, key.name, frozenset(key.scopes), key.models, key.rate, key.guard, key.trusted)

    def refresh(self) -> bool:
        """Read the keys file again if it has changed; whether it was taken in. Blocks on the disk."""
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            before, after = self._take_in()
        except ConfigError as error:
            _log.error("keys file is wrong, the keys before stay in force", file=str(self._file), reason=error.message)
            return False
        # Whoever may write the file has no key and no address here; `stoker keys` is one who does.
        changed = {"added": sorted(after - before), "removed": sorted(before - after)}
        audit("keys read again", key=None, address="", outcome="done", file=str(self._file), keys=len(after), **changed)
        return True

    def _take_in(self) -> tuple[set[str], set[str]]:
        """Read the file; the keys' names before and after."""
        from_file = read_keys(self._file)
        keys = [*self._configured, *(from_file or ())]
        refuse_doubles(keys, str(self._file))
        # A file that vanishes is no reason to let everybody in: only a restart forgets that there were keys.
        self._in_use = self._in_use or bool(keys) or from_file is not None
        before, self._keys = self._keys, {key.hash: key for key in keys}
        return _names(before), _names(self._keys)


def _shown_key(headers: Mapping[str, str]) -> str | None:
    """The key in the headers; one that is no bearer's is one that nobody knows."""
    authorization = headers.get("authorization", "")
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key") or authorization or None


def _stamp(file: Path) -> tuple[int, int]:
    """What changes when the file does: it is renamed into place, so a new inode comes with every change."""
    try:
        status = os.stat(file)  # noqa: PTH116 - one call, also for a missing file
    except OSError:
        return _NO_STAMP
    return status.st_ino, status.st_mtime_ns


def _names(keys: Mapping[str, KeyConfig]) -> set[str]:
    return {key.name for key in keys.values()}
