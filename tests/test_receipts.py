"""Receipts of erasure beside Ed25519 written out from RFC 8032, and a check that needs no s3clip."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError
from rfc8032 import RFC_8032, slow_ed25519

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.gallery.erasure.receipts import BackupErasure, Receipt, Signer, verify

SECRET, PUBLIC = (bytes.fromhex(RFC_8032[0][0]), RFC_8032[0][1])

THIRD_PARTY = """
import base64, json, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

document = json.load(sys.stdin)
message = json.dumps(document["receipt"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["public_key"]))
key.verify(base64.b64decode(document["signature"]), message)
assert not any(name.startswith("s3clip") for name in sys.modules)
print(document["receipt"]["asked"])
"""


def receipt(**changes: object) -> Receipt:
    fields: dict[str, Any] = {
        "receipt_id": "0a1b2c",
        "gallery": "5f0c",
        "what": "identity",
        "asked": 'forget "Zoë Kovač" \\ 王芳 \x1f\n\U0001f600',
        "asked_by": "operator",
        "box": "gate-1",
        "time": datetime(2026, 3, 4, 5, 6, 7, 89000, UTC),
        "erased": {"prototypes": 12, "clips": 3, "sightings": 41, "log details": 7, "pictures": 24},
        "backups": (
            BackupErasure(path="backups/monday.sqlite", erased={"prototypes": 11}),
            BackupErasure(path="backups/tuesday.sqlite", not_reached="no such file"),
        ),
        "scrubbed": "secure_delete, VACUUM",
        "searched": 15,
        "found": 0,
        "not_reached": ("Blocks that the file system has given back.", "Events that were sent."),
    }
    return Receipt(**fields | changes)


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_keys_are_those_of_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    signer = Signer.from_bytes(bytes.fromhex(secret))
    assert signer.public_key == public
    assert signer.private_bytes().hex() == secret
    slow = slow_ed25519(bytes.fromhex(secret), bytes.fromhex(message))  # itself held by the RFC's signatures
    assert [part.hex() for part in slow] == [public, signature]


def test_the_signature_is_that_of_the_documented_bytes() -> None:
    document = json.loads(Signer.from_bytes(SECRET).sign(receipt()))
    assert sorted(document) == ["public_key", "receipt", "signature"]
    message = (
        r'{"asked":"forget \"Zoë Kovač\" \\ 王芳 \u001f\n😀","asked_by":"operator",'
        r'"backups":[{"erased":{"prototypes":11},"not_reached":null,"path":"backups/monday.sqlite"},'
        r'{"erased":null,"not_reached":"no such file","path":"backups/tuesday.sqlite"}],"box":"gate-1",'
        r'"erased":{"clips":3,"log details":7,"pictures":24,"prototypes":12,"sightings":41},"found":0,'
        r'"gallery":"5f0c","not_reached":["Blocks that the file system has given back.",'
        r'"Events that were sent."],"receipt_id":"0a1b2c","schema":"s3clip.receipt/1",'
        r'"scrubbed":"secure_delete, VACUUM","searched":15,"time":"2026-03-04T05:06:07.089000Z",'
        r'"what":"identity"}'
    )
    public, signature = slow_ed25519(SECRET, message.encode())
    assert document["public_key"] == public.hex()
    assert base64.b64decode(document["signature"]) == signature


def test_anybody_can_verify_without_s3clip() -> None:
    text = Signer.new().sign(receipt())
    altered = text.replace('"clips": 3', '"clips": 4')
    assert altered != text
    command = [sys.executable, "-I", "-X", "utf8", "-c", THIRD_PARTY]
    good = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60, cwd="/")
    assert good.stdout.decode() == receipt().asked + "\n", good.stderr
    bad = subprocess.run(command, input=altered.encode(), capture_output=True, timeout=60, cwd="/")
    assert bad.returncode == 1
    assert b"InvalidSignature" in bad.stderr


def test_what_was_signed_comes_back() -> None:
    signer = Signer.new()
    text = signer.sign(receipt())
    for key in (signer.public_key, signer.public_key.upper() + "\n", None):
        assert verify(text, key) == receipt()
    assert Signer.from_bytes(signer.private_bytes()).sign(receipt()) == text


def shuffled(value: object, rng: random.Random) -> object:
    if isinstance(value, dict):
        keys = rng.sample(list(value), len(value))
        return {key: shuffled(value[key], rng) for key in keys}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def test_the_layout_of_the_file_and_the_order_of_keys_do_not_count() -> None:
    text = Signer.from_bytes(SECRET).sign(receipt())
    backwards = dict(reversed(receipt().erased.items()))
    assert Signer.from_bytes(SECRET).sign(receipt(erased=backwards)) == text
    rng = random.Random(1)
    for indent in (None, 0, 4):
        other = json.dumps(shuffled(json.loads(text), rng), indent=indent)  # escapes all but ASCII, too
        assert other != text
        assert verify(other, PUBLIC) == receipt()


def altered(value: object) -> Iterator[object]:
    """Every copy with one leaf changed, one key or item removed, or one key added."""
    if isinstance(value, dict):
        yield {**value, "added": 1}
    if isinstance(value, dict | list):
        for place in value if isinstance(value, dict) else range(len(value)):
            less: Any = copy.copy(value)
            del less[place]
            yield less
            for changed in altered(value[place]):
                other: Any = copy.copy(value)
                other[place] = changed
                yield other
    elif isinstance(value, str):
        yield from (value + " ", value[1:], None)
    elif isinstance(value, int):
        yield from (value + 1, float(value), str(value))
    else:
        yield "not null"


def test_every_altered_field_is_refused() -> None:
    document = json.loads(Signer.from_bytes(SECRET).sign(receipt()))
    copies = list(altered(document["receipt"]))
    assert len(copies) > 80
    for record in copies:
        with pytest.raises(GalleryError, match="signature does not fit"):
            verify(json.dumps({**document, "receipt": record}), PUBLIC)


def test_no_altered_character_gives_another_receipt() -> None:
    text = Signer.from_bytes(SECRET).sign(receipt())
    refused = 0
    for place, character in enumerate(text):
        try:
            found = verify(f"{text[:place]}{chr(ord(character) ^ 1)}{text[place + 1 :]}", PUBLIC)
        except GalleryError:
            refused += 1
        else:
            assert found == receipt()
    assert refused > 0.6 * len(text)  # white space may change to `!`, which is refused too


def test_another_key_is_refused_by_name() -> None:
    text = Signer.new().sign(receipt())
    with pytest.raises(GalleryError, match=f"must be signed by the key {PUBLIC}, found"):
        verify(text, PUBLIC)
    forged = {**json.loads(text), "public_key": PUBLIC}
    for key in (PUBLIC, None):
        with pytest.raises(GalleryError, match="signature does not fit"):
            verify(json.dumps(forged), key)


def test_a_signature_of_another_receipt_is_refused() -> None:
    signer = Signer.new()
    first, second = (json.loads(signer.sign(receipt(receipt_id=name))) for name in ("one", "two"))
    with pytest.raises(GalleryError, match="signature does not fit"):
        verify(json.dumps({**first, "signature": second["signature"]}), signer.public_key)


def signed(record: dict[str, object]) -> str:
    message = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    public, signature = slow_ed25519(SECRET, message)
    parts = {"public_key": public.hex(), "signature": base64.b64encode(signature).decode()}
    return json.dumps({"receipt": record, **parts})


def test_what_was_signed_but_is_no_receipt_is_refused() -> None:
    record: dict[str, object] = json.loads(Signer.from_bytes(SECRET).sign(receipt()))["receipt"]
    assert verify(signed(record), PUBLIC) == receipt()
    for changes, fault in (
        ({"schema": "s3clip.receipt/2"}, "schema"),
        ({"more": 1}, "more"),
        ({"found": -1}, "found"),
        ({"erased": {"clips": "many"}}, "erased.clips"),
        ({"time": "2026-03-04T05:06:07+02:00"}, "UTC"),
    ):
        with pytest.raises(GalleryError, match=f"not a receipt of erasure.*{fault}"):
            verify(signed(record | changes), PUBLIC)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no JSON"),
        ("not JSON", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"receipt": {"asked": "\\ud800"}}', "no JSON"),
        ("9" * 10_000, "no JSON"),
        ("[]", "not a receipt"),
        ("{}", "public_key"),
        ('{"receipt": {}, "receipt": {}}', "a key stands twice"),
        ('{"receipt": {}, "public_key": "5f", "signature": "5f"}', "public_key.*signature"),
    ],
)
def test_what_is_no_receipt_is_refused(text: str, fault: str) -> None:
    with pytest.raises(GalleryError, match=f"not a receipt of erasure .*{fault}|{fault}"):
        verify(text, None)


def test_a_key_that_stands_twice_is_refused_at_every_level() -> None:
    text = Signer.from_bytes(SECRET).sign(receipt())
    twice = text.replace('"clips": 3', '"clips": 0, "clips": 3')
    assert json.loads(twice) == json.loads(text)  # what most readers see
    with pytest.raises(GalleryError, match="a key stands twice"):
        verify(twice, PUBLIC)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(GalleryError, match=f"must have 32 bytes, found {size}"):
        Signer.from_bytes(bytes(size))


def test_the_private_key_gets_out_of_no_repr_no_receipt_and_no_pickle() -> None:
    signer = Signer.from_bytes(SECRET)
    shown = repr(signer) + signer.sign(receipt())
    for secret in (SECRET.hex(), base64.b64encode(SECRET).decode(), repr(SECRET)[2:20]):
        assert secret not in shown
    with pytest.raises(TypeError):
        pickle.dumps(signer)
    assert Signer.new().public_key != Signer.new().public_key


def test_complete_is_nothing_found_and_every_backup_reached() -> None:
    reached = (BackupErasure(path="monday", erased={}),)
    assert not receipt().complete
    assert receipt(backups=reached).complete
    assert receipt(backups=()).complete
    assert not receipt(backups=reached, found=1).complete


@pytest.mark.parametrize(
    "changes",
    [
        {"found": 16},
        {"searched": -1, "found": -1},
        {"erased": {"clips": -1}},
        {"erased": {"clips": 2**53}},
        {"what": "everything"},
        {"asked_by": ""},
        {"asked": "\ud800"},
        {"time": datetime(2026, 3, 4)},
        {"time": datetime(2026, 3, 4, tzinfo=timezone(timedelta(hours=1)))},
        {"more": 1},
    ],
)
def test_what_no_receipt_may_say(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        receipt(**changes)


def test_a_backup_was_erased_or_was_not() -> None:
    for parts in ({}, {"erased": {}, "not_reached": "no such file"}):
        with pytest.raises(ValidationError, match="either what was erased or why"):
            BackupErasure.model_validate({"path": "monday", **parts})
