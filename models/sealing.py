"""Secrets at rest: what others trusted us with is stored sealed, and opened only to be used.

Sealed text is `sealed:` and a Fernet token. The keys lie outside of the database: in STOKER_SECRET_KEY, or in the file
`secret-key` of the data folder. The first key seals, all open, so that a key can be replaced while the service runs.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from models.errors import StokerError
from stoker.settings import Settings

MARK = "sealed:"
FILE = "secret-key"


class NoSecretKey(StokerError):
    """There is no key to seal or open secrets with; the text says what to do."""


class Seal:
    """What seals and opens secrets. Safe to share between threads."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Take the keys, each the url-safe base64 of 32 bytes; none: nothing can be sealed."""
        self._newest = Fernet(keys[0]) if keys else None
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self._material = [base64.urlsafe_b64decode(key) for key in keys]

    def close(self, text: str) -> str:
        """Return a secret sealed. Raises NoSecretKey."""
        return MARK + self._keys().encrypt(text.encode()).decode("ascii")

    def open(self, text: str) -> str:
        """Return what was sealed; text that never was (an older version's) as it is. Raises NoSecretKey."""
        if not text.startswith(MARK):
            return text
        try:
            return self._keys().decrypt(text.removeprefix(MARK)).decode()
        except (InvalidToken, ValueError):
            raise NoSecretKey(
                "a stored secret cannot be opened with the keys of this process: "
                "STOKER_SECRET_KEY must be the same for web servers and workers"
            ) from None

    def renew(self, text: str) -> str:
        """Return a stored secret as the newest key seals it; what that key opens already stays as it is.

        Raises NoSecretKey.
        """
        if self._newest is not None and text.startswith(MARK):
            with suppress(InvalidToken, ValueError):
                self._newest.decrypt(text.removeprefix(MARK))
                return text
        return self.close(self.open(text))

    def derived(self, purpose: str) -> list[bytes]:
        """Return a key of 32 bytes for another purpose of each key, newest first; without any, none."""
        return [
            HKDF(algorithm=SHA256(), length=32, salt=None, info=f"stoker {purpose}".encode()).derive(material)
            for material in self._material
        ]

    def _keys(self) -> MultiFernet:
        if self._fernet is None:
            raise NoSecretKey(
                "there is no key to keep secrets with: set STOKER_SECRET_KEY (`stoker keys secret-key` makes one), "
                "the same for web servers and workers"
            )
        return self._fernet


def new_key() -> str:
    """Return a new key."""
    return Fernet.generate_key().decode("ascii")


def seal_of(settings: Settings) -> Seal:
    """Return the seal of these settings, or of the data folder's file; it has no key where there is neither.

    Raises NoSecretKey when the file cannot be used.
    """
    if settings.secret_key:
        return Seal(settings.secret_key.split())
    file = Path(settings.data) / FILE
    try:
        return Seal(file.read_text(encoding="ascii").split())
    except FileNotFoundError:
        return Seal(())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no key"
        raise NoSecretKey(f"{file.absolute()} cannot be used: {why}; put the backup of it there") from None
