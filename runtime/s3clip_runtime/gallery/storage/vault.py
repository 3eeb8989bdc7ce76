"""Encryption at rest of vectors and crops, with a key from a file. Optional: galleries work without it.

A key file holds 32 random bytes as one line of base64. A sealed message is

    1 byte    version, always 1
    12 bytes  nonce, random
    n bytes   the message, encrypted by AES-256-GCM with the key as it stands in the file
    16 bytes  tag over the message and its context

The context is authenticated but not stored: whoever unseals must know which row the bytes belong to, so that
a vector that was moved to another row is refused. A nonce must not come twice under one key. Each is drawn
anew, and NIST SP 800-38D allows 2^32 messages of one key with random nonces of 96 bits: the chance that any
two of them are equal is then below 2^-32. That is 10,000 messages a day for a thousand years. Galleries that
share a key file share this number.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from s3clip_runtime.errors import ConfigError, GalleryError
from s3clip_runtime.gallery.storage.folders import sync_folder

KEY_BYTES = 32
OVERHEAD = 1 + 12 + 16
"""Bytes that a sealed message has more than the plain one."""

_VERSION = b"\x01"
_NONCE_BYTES = 12
_HEAD = len(_VERSION) + _NONCE_BYTES
_FINGERPRINT_INFO = b"s3clip vault/1 fingerprint"
_LONGEST_FILE = 4096
"""Bytes of a key file. It has 45; more is a wrong file."""


class Vault:
    """Seals and unseals bytes with one key. Threads may share it, and a forked process draws its own nonces.

    The key is in no attribute, no repr, no message, and cannot be pickled.

    Args:
        key: 32 bytes.
        name: of the key's file, for messages.
    """

    __slots__ = ("_cipher", "_fingerprint", "_name")

    def __init__(self, key: bytes, name: str) -> None:
        self._cipher = AESGCM(key)  # holds the key outside Python's objects
        derived = HKDF(algorithm=SHA256(), length=8, salt=None, info=_FINGERPRINT_INFO).derive(key)
        self._fingerprint = derived.hex()
        self._name = name

    @staticmethod
    def open(key_file: Path) -> Vault:
        """The vault of a key file that `make_key` wrote. The file is not needed afterwards.

        A group may read the file, as systemd and shared sites have it; everybody else must not.

        Raises:
            ConfigError: it is missing, cannot be read, may be read or written by others, or holds no key.
                No message tells what stands in it.
        """
        return Vault(_key(key_file, _read(key_file)), str(key_file))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell keys apart and nothing about them: HKDF-SHA256 of the key.

        A gallery keeps it, so that a wrong key is refused when the gallery is opened.
        """
        return self._fingerprint

    def seal(self, plain: bytes, *, context: bytes) -> bytes:
        """Encrypt a message.

        Args:
            plain: up to 2 GiB.
            context: names the row that the message belongs to, such as `b"prototype:" + identity`.

        Returns:
            `OVERHEAD` bytes more than the message; other ones each time.
        """
        nonce = os.urandom(_NONCE_BYTES)
        return b"".join((_VERSION, nonce, self._cipher.encrypt(nonce, plain, context)))

    def unseal(self, sealed: bytes, *, context: bytes) -> bytes:
        """The message that `seal` encrypted with this key and this context.

        Raises:
            GalleryError: another key, another context, a later version, or a changed byte.
        """
        if len(sealed) < OVERHEAD or sealed[:1] != _VERSION:
            raise GalleryError(
                f"a sealed entry must have version {_VERSION[0]} and at least {OVERHEAD} bytes, found "
                f"version {sealed[0] if sealed else None} and {len(sealed)} bytes; restore a backup, or "
                "update s3clip if a later one wrote it"
            )
        try:
            return self._cipher.decrypt(sealed[len(_VERSION) : _HEAD], sealed[_HEAD:], context)
        except InvalidTag:
            raise GalleryError(
                f"key file {self._name} does not fit the gallery, or it is damaged: an entry fails its "
                "check; give the key file that the gallery was made with, or restore a backup"
            ) from None

    def __repr__(self) -> str:
        return f"Vault({self._name!r}, fingerprint={self._fingerprint!r})"


def make_key(path: Path) -> None:
    """Write a new key file that its owner alone may read (mode 0600); on the disk when this returns.

    Keep a copy elsewhere: without it what was sealed is lost.

    Raises:
        ConfigError: there is a file already, or it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"key file {path}: there is one already and a new key opens no old gallery; give a new path, "
            "or move the old file away"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"key file {path}: cannot be written ({error.strerror}); check the folder"
        ) from None
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(fd)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()  # ours: nothing was there before
        raise ConfigError(f"key file {path}: cannot be written ({error.strerror}); check the disk") from None


def _read(key_file: Path) -> bytes:
    what = f"key file {key_file}"
    try:
        # Rights and content of one open file, so that nobody changes it in between; a pipe does not block.
        fd = os.open(key_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{what}: not a regular file; give the file that holds the key")
            mode = stat.S_IMODE(status.st_mode)
            if mode & 0o027:
                rule = "others must neither read nor change it"
                raise ConfigError(f"{what}: {rule}, found mode {mode:03o}; chmod 600 {key_file}")
            return os.read(fd, _LONGEST_FILE)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise ConfigError(f"{what}: no such file; check the path, or make a key for a new gallery") from None
    except OSError as error:
        raise ConfigError(f"{what}: cannot be read ({error.strerror}); check who may read it") from None


def _key(key_file: Path, data: bytes) -> bytes:
    rule = f"key file {key_file}: must hold {KEY_BYTES} bytes as one line of base64"
    cure = "give the file that the key was written to"
    try:
        key = base64.b64decode(data.removesuffix(b"\n").removesuffix(b"\r"), validate=True)
    except binascii.Error:
        raise ConfigError(f"{rule}, found other text; {cure}") from None
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{rule}, found {len(key)} bytes; {cure}")
    return key
