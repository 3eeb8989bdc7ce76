"""Encryption at rest beside AES-GCM written out from its standard, and keys that must not get out."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import os
import pickle
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from s3clip_runtime.errors import ConfigError, GalleryError
from s3clip_runtime.gallery.storage.vault import OVERHEAD, Vault, make_key

KEY = bytes(range(32))
LINE = base64.b64encode(KEY) + b"\n"
CONTEXT = b"prototype:" + b"5f" * 16


@pytest.fixture(name="vault")
def one_vault(tmp_path: Path) -> Vault:
    return Vault.open(written(tmp_path / "key"))


@pytest.fixture
def wide_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def written(path: Path, data: bytes = LINE, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def aes(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # one block: GCM is built of these
    return encryptor.update(block) + encryptor.finalize()


def times(x: int, y: int) -> int:
    """The product of GHASH's field: SP 800-38D, 6.3, bit by bit."""
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return product


def slow_gcm(key: bytes, nonce: bytes, plain: bytes, context: bytes) -> bytes:
    """Ciphertext and tag of AES-GCM with a nonce of 96 bits, from SP 800-38D, 7.1."""
    cipher = b""
    for number, start in enumerate(range(0, len(plain), 16), 2):
        pad = aes(key, nonce + number.to_bytes(4, "big"))
        cipher += bytes(a ^ b for a, b in zip(plain[start : start + 16], pad, strict=False))
    lengths = (8 * len(context)).to_bytes(8, "big") + (8 * len(cipher)).to_bytes(8, "big")
    subkey, state = int.from_bytes(aes(key, bytes(16)), "big"), 0
    for part in (context, cipher, lengths):
        for start in range(0, len(part), 16):
            state = times(state ^ int.from_bytes(part[start : start + 16].ljust(16, b"\0"), "big"), subkey)
    mask = int.from_bytes(aes(key, nonce + (1).to_bytes(4, "big")), "big")
    return cipher + (state ^ mask).to_bytes(16, "big")


def test_the_slow_gcm_gives_the_published_numbers() -> None:
    """Test cases 13 and 14 of McGrew and Viega's paper on GCM: a key of 256 zero bits."""
    assert slow_gcm(bytes(32), bytes(12), b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    sealed = slow_gcm(bytes(32), bytes(12), bytes(16), b"").hex()
    assert sealed == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 2560])
def test_a_sealed_message_is_the_documented_bytes(vault: Vault, size: int) -> None:
    plain = os.urandom(size)
    sealed = vault.seal(plain, context=CONTEXT)
    assert sealed[:1] == b"\x01"
    assert sealed[13:] == slow_gcm(KEY, sealed[1:13], plain, CONTEXT)
    assert len(sealed) == size + OVERHEAD


@pytest.mark.parametrize("size", [0, 33])
def test_messages_that_the_slow_gcm_sealed_are_unsealed(vault: Vault, size: int) -> None:
    plain, nonce = os.urandom(size), os.urandom(12)
    sealed = b"\x01" + nonce + slow_gcm(KEY, nonce, plain, CONTEXT)
    assert vault.unseal(sealed, context=CONTEXT) == plain


def test_every_flipped_bit_is_refused(vault: Vault) -> None:
    sealed = vault.seal(b"a vector", context=CONTEXT)
    for place in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[place] ^= 1 << bit
            with pytest.raises(GalleryError, match="damaged" if place else "version"):
                vault.unseal(bytes(changed), context=CONTEXT)
    assert vault.unseal(sealed, context=CONTEXT) == b"a vector"


def test_a_part_and_an_excess_are_refused(vault: Vault) -> None:
    sealed = vault.seal(b"a vector", context=CONTEXT)
    for changed in (*(sealed[:end] for end in range(len(sealed))), sealed + b"\0", sealed[1:]):
        with pytest.raises(GalleryError):
            vault.unseal(changed, context=CONTEXT)


def test_a_message_of_another_row_is_refused(vault: Vault) -> None:
    sealed = vault.seal(b"a vector", context=CONTEXT)
    for context in (b"prototype:" + b"60" * 16, b"clip:" + b"5f" * 16, CONTEXT + b"0", b""):
        with pytest.raises(GalleryError, match="fails its check"):
            vault.unseal(sealed, context=context)


def test_another_key_is_refused_by_name(vault: Vault, tmp_path: Path) -> None:
    other = Vault.open(written(tmp_path / "other", base64.b64encode(bytes(32))))
    message = f"key file {tmp_path / 'other'} does not fit the gallery, or it is damaged"
    with pytest.raises(GalleryError, match=re.escape(message)):
        other.unseal(vault.seal(b"a vector", context=CONTEXT), context=CONTEXT)
    assert other.fingerprint != vault.fingerprint


def test_no_nonce_comes_twice_not_even_after_a_fork(vault: Vault) -> None:
    nonces = {vault.seal(b"", context=b"")[1:13] for _ in range(10_000)}
    assert len(nonces) == 10_000
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        os.write(write, vault.seal(b"", context=b""))
        os._exit(0)
    ours = vault.seal(b"", context=b"")
    assert os.waitpid(child, 0)[1] == 0
    theirs = os.read(read, 100)
    os.close(read)
    os.close(write)
    assert len(theirs) == OVERHEAD
    assert ours[1:13] != theirs[1:13]


def test_the_fingerprint_is_the_documented_hkdf_of_the_key(vault: Vault) -> None:
    extracted = hmac.digest(bytes(32), KEY, hashlib.sha256)  # RFC 5869 without salt, one block
    expanded = hmac.digest(extracted, b"s3clip vault/1 fingerprint\x01", hashlib.sha256)
    assert vault.fingerprint == expanded[:8].hex()


def test_the_key_gets_out_of_no_repr_no_error_and_no_pickle(vault: Vault, tmp_path: Path) -> None:
    shown = [repr(vault), vault.fingerprint]
    for name, data in (("long", LINE + LINE), ("short", base64.b64encode(KEY[:31])), ("cut", LINE[:-2])):
        with pytest.raises(ConfigError) as caught:
            Vault.open(written(tmp_path / name, data))
        shown += traceback.format_exception(caught.value)
    with pytest.raises(GalleryError) as refused:
        vault.unseal(bytes(60), context=CONTEXT)
    shown += traceback.format_exception(refused.value)
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError) as unpickled:
            copied(vault)
        shown += traceback.format_exception(unpickled.value)
    text = "".join(shown)
    for secret in (LINE.decode()[:12], KEY.hex()[:12], repr(KEY)[2:20]):
        assert secret not in text
    assert not hasattr(vault, "__dict__")


@pytest.mark.usefixtures("wide_umask")
def test_a_new_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        make_key(path)
        assert path.stat().st_mode & 0o777 == 0o600
        line = path.read_bytes()
        assert line.count(b"\n") == 1
        assert len(base64.b64decode(line, validate=False)) == 32
    assert paths[0].read_bytes() != paths[1].read_bytes()
    one, two = map(Vault.open, paths)
    assert one.fingerprint != two.fingerprint
    sealed = one.seal(b"a vector", context=CONTEXT)
    assert Vault.open(paths[0]).unseal(sealed, context=CONTEXT) == b"a vector"


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    there = written(tmp_path / "key")
    to_it, to_nothing = tmp_path / "link", tmp_path / "dangling"
    to_it.symlink_to(there)
    to_nothing.symlink_to(tmp_path / "nothing")
    for path in (there, to_it, to_nothing):
        with pytest.raises(ConfigError, match="there is one already"):
            make_key(path)
    assert there.read_bytes() == LINE
    assert not (tmp_path / "nothing").exists()


def test_a_key_file_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        make_key(tmp_path / "missing" / "key")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644, 0o660, 0o666, 0o620, 0o777])
def test_a_key_file_of_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "key", mode=mode)
    with pytest.raises(ConfigError, match=rf"found mode {mode:03o}; chmod 600 {path}"):
        Vault.open(path)
    path.chmod(0o600)
    Vault.open(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_key_file_of_the_owner_or_a_group_is_read(tmp_path: Path, mode: int) -> None:
    link = tmp_path / "link"  # mounted secrets are links
    link.symlink_to(written(tmp_path / "key", mode=mode))
    assert Vault.open(link).fingerprint == Vault(KEY, "k").fingerprint


@pytest.mark.parametrize("data", [LINE, LINE[:-1], LINE[:-1] + b"\r\n"])
def test_the_line_end_of_a_key_file_does_not_count(tmp_path: Path, data: bytes) -> None:
    assert Vault.open(written(tmp_path / "key", data)).fingerprint == Vault(KEY, "k").fingerprint


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "found 0 bytes"),
        (base64.b64encode(KEY[:16]), "found 16 bytes"),
        (base64.b64encode(KEY + b"\0"), "found 33 bytes"),
        (KEY, "found other text"),
        (KEY.hex().encode(), "found 48 bytes"),  # hex digits are base64 as well
        (LINE + LINE, "found other text"),
        (b" " + LINE, "found other text"),
        (b"A" * 100_000, "found 3072 bytes"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes, found: str) -> None:
    rule = "must hold 32 bytes as one line of base64, "
    with pytest.raises(ConfigError, match=rule + found):
        Vault.open(written(tmp_path / "key", data))


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path):
        with pytest.raises(ConfigError, match="not a regular file"):
            Vault.open(path)
    with pytest.raises(ConfigError, match="no such file"):
        Vault.open(tmp_path / "missing")
