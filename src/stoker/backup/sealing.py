"""Seals secrets with a passphrase; the only place that knows the encryption library.

A sealed object is a header, then the content under AES-256-GCM. The key comes from the passphrase by scrypt (RFC 7914);
the header holds its parameters and salt, and is authenticated with the content: one flipped bit anywhere is found.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from stoker.errors import OperatorError

MAGIC: Final = b"STKSEAL1"
COST_LOG2: Final = 17
BLOCK: Final = 8
PARALLEL: Final = 1
"""Scrypt's parameters: 128 MiB and some 0.3 s for each guess (OWASP's recommendation)."""
MIN_PASSPHRASE: Final = 8

_HEADER: Final = struct.Struct(">8sBBB16s12s")
_MAX_COST_LOG2: Final = 20
_TAG: Final = 16
OVERHEAD: Final = _HEADER.size + _TAG
"""Bytes by which a sealed object is longer than its content."""


class WrongKey(OperatorError):
    """The passphrase does not open what is sealed, or it was altered."""

    code = "wrong_key"


class Sealer:
    """Seals and opens with one passphrase; what it derives from it is kept, for that takes a moment.

    Args:
        passphrase: at least MIN_PASSPHRASE characters.

    Raises:
        WrongKey: it is too short to protect anything, or no text.
    """

    def __init__(self, passphrase: str) -> None:
        if len(passphrase) < MIN_PASSPHRASE:
            raise WrongKey(f"the backup key is too short: it needs at least {MIN_PASSPHRASE} characters")
        try:
            self._passphrase = passphrase.encode()
        except UnicodeEncodeError:
            raise WrongKey("the backup key is no text: it must be UTF-8") from None
        self._salt = os.urandom(16)
        self._keys: dict[tuple[int, int, int, bytes], AESGCM] = {}

    def seal(self, data: bytes) -> bytes:
        """Content as it may lie anywhere."""
        nonce = os.urandom(12)
        header = _HEADER.pack(MAGIC, COST_LOG2, BLOCK, PARALLEL, self._salt, nonce)
        return header + self._cipher(COST_LOG2, BLOCK, PARALLEL, self._salt).encrypt(nonce, data, header)

    def unseal(self, sealed: bytes) -> bytes:
        """The content again; WrongKey when the passphrase is another one, or a byte was altered."""
        if len(sealed) < OVERHEAD or not sealed.startswith(MAGIC):
            raise WrongKey("this is no sealed object: it is damaged, or from a newer Stoker")
        header = sealed[: _HEADER.size]
        _, cost, block, parallel, salt, nonce = _HEADER.unpack(header)
        # The header is believed only after the key is derived, so it must not ask for endless work.
        if not 1 <= cost <= _MAX_COST_LOG2 or block != BLOCK or parallel != PARALLEL:
            raise WrongKey("the sealed object's header makes no sense: it is damaged, or from a newer Stoker")
        try:
            return self._cipher(cost, block, parallel, salt).decrypt(nonce, sealed[_HEADER.size :], header)
        except InvalidTag:
            raise WrongKey("the backup key does not open the secrets: it is another key, or they are damaged") from None

    def _cipher(self, cost: int, block: int, parallel: int, salt: bytes) -> AESGCM:
        known = self._keys.get((cost, block, parallel, salt))
        if known is None:
            derive = Scrypt(salt=salt, length=32, n=1 << cost, r=block, p=parallel)
            known = AESGCM(derive.derive(self._passphrase))
            self._keys = {**self._keys, (cost, block, parallel, salt): known}
        return known


def seal(data: bytes, passphrase: str) -> bytes:
    """Seal one content by itself."""
    return Sealer(passphrase).seal(data)


def unseal(sealed: bytes, passphrase: str) -> bytes:
    """Open one sealed object; raises WrongKey."""
    return Sealer(passphrase).unseal(sealed)
