"""Signed receipts of erasure, which anybody can check without s3clip.

A receipt file is JSON with three keys:

    receipt     the record, see `Receipt`; its `schema` is s3clip.receipt/1
    public_key  Ed25519 (RFC 8032), 32 bytes as 64 hex digits
    signature   64 bytes as base64

What is signed is `receipt` as canonical JSON (RFC 8785) in UTF-8: keys sorted at every level, no white space,
nothing escaped but `"`, `\\` and control characters. There are only strings, whole numbers, null, lists and
objects, so that Python's json writes it:

    json.dumps(document["receipt"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

The file itself may be laid out in any way. The public key in it says which box signed, not that the box is
yours: compare it with the one that you know.
"""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AwareDatetime, Field, ValidationError, field_validator, model_validator

from s3clip_runtime.errors import GalleryError
from s3clip_runtime.inference.records import Record

SCHEMA: Literal["s3clip.receipt/1"] = "s3clip.receipt/1"

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""Every JSON reader keeps such a number exactly."""

Words = Annotated[str, Field(min_length=1)]


class BackupErasure(Record):
    """What became of one backup: `erased`, or why it was not reached.

    Attributes:
        path: of the backup, as the gallery knew it.
        erased: rows by table.
        not_reached: why; None where it was reached.
    """

    path: Words
    erased: dict[str, Count] | None = None
    not_reached: Words | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> BackupErasure:
        if (self.erased is None) == (self.not_reached is None):
            raise ValueError("a backup has either what was erased or why it was not reached")
        return self


class Receipt(Record):
    """What one erasure did. Its words may name the person: it belongs to whoever asked, not into the gallery.

    Attributes:
        schema_name: `schema` in the file.
        receipt_id: names this receipt.
        gallery: id of the gallery.
        what: the kind of the request.
        asked: the request in the words as asked.
        asked_by: who asked.
        box: where it was done.
        time: when it was done, in UTC.
        erased: rows by table, and pictures.
        backups: that the gallery knew of.
        scrubbed: how the pages of erased rows were overwritten.
        searched: byte sequences of erased rows that were searched for in the gallery's files afterwards.
        found: how many of them were still there.
        not_reached: sentences on what an erasure of a gallery cannot reach.
    """

    schema_name: Literal["s3clip.receipt/1"] = Field(default=SCHEMA, alias="schema")
    receipt_id: Words
    gallery: Words
    what: Literal["identity", "time", "camera", "retention"]
    asked: Words
    asked_by: Words
    box: Words
    time: AwareDatetime
    erased: dict[str, Count]
    backups: tuple[BackupErasure, ...]
    scrubbed: Words
    searched: Count
    found: Count
    not_reached: tuple[Words, ...]

    @field_validator("time")
    @classmethod
    def _in_utc(cls, time: AwareDatetime) -> AwareDatetime:
        if time.utcoffset() != timedelta(0):
            raise ValueError("must be in UTC")
        return time

    @model_validator(mode="after")
    def _found_what_was_searched(self) -> Receipt:
        if self.found > self.searched:
            raise ValueError(f"found ({self.found}) must be at most searched ({self.searched})")
        return self

    @property
    def complete(self) -> bool:
        """Nothing was found afterwards, and every backup was reached. `not_reached` holds all the same."""
        return self.found == 0 and all(backup.not_reached is None for backup in self.backups)


class Signer:
    """Signs receipts with one Ed25519 key, which is in no repr, no message, and cannot be pickled."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @staticmethod
    def new() -> Signer:
        """A signer with a new random key."""
        return Signer(Ed25519PrivateKey.generate())

    @staticmethod
    def from_bytes(private: bytes) -> Signer:
        """The signer that gave these `private_bytes`: 32, any are a key.

        Raises:
            GalleryError: another number of bytes.
        """
        if len(private) != 32:
            raise GalleryError(
                f"the key of receipts must have 32 bytes, found {len(private)}: the gallery is damaged; "
                "restore a backup"
            )
        return Signer(Ed25519PrivateKey.from_private_bytes(private))

    def private_bytes(self) -> bytes:
        """The 32 secret bytes, for keeping: whoever has them can sign receipts."""
        return self._key.private_bytes_raw()

    @property
    def public_key(self) -> str:
        """64 hex digits, for telling: whoever has them can check receipts."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, receipt: Receipt) -> str:
        """The receipt as the text of a signed JSON file. The same receipt gives the same text."""
        record = receipt.model_dump(mode="json", by_alias=True)
        signature = base64.b64encode(self._key.sign(_canonical(record))).decode()
        document = {"receipt": record, "public_key": self.public_key, "signature": signature}
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def __repr__(self) -> str:
        return f"Signer(public_key={self.public_key!r})"


class _Document(Record):
    receipt: dict[str, object]
    public_key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    signature: Annotated[str, Field(pattern="^[A-Za-z0-9+/]{86}==$")]


def verify(text: str, public_key: str | None) -> Receipt:
    """The receipt in a signed file, once its signature holds.

    Args:
        text: of the file.
        public_key: 64 hex digits of the key that must have signed it. With None the key in the file is taken:
            then the receipt was not altered by mistake, but anybody may have signed it.

    Raises:
        GalleryError: it is no receipt, another key signed it, or it was altered.
    """
    document = _document(text)
    if public_key is not None and public_key.strip().lower() != document.public_key:
        raise GalleryError(
            f"the receipt must be signed by the key {public_key}, found {document.public_key}; "
            "ask the box that holds the gallery for its receipt and its key"
        )
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document.public_key))
        key.verify(base64.b64decode(document.signature), _canonical(document.receipt))
    except InvalidSignature:
        raise GalleryError(
            "the receipt's signature does not fit its text: one of them was altered; "
            "ask the box that signed it for it again"
        ) from None
    try:
        return Receipt.model_validate(document.receipt)
    except ValidationError as error:
        raise _no_receipt(_faults(error)) from None


def _canonical(record: object) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _document(text: str) -> _Document:
    try:
        data = json.loads(text, object_pairs_hook=_once)
        _canonical(data)  # refuses halves of surrogate pairs, which UTF-8 cannot hold
        return _Document.model_validate(data)
    except ValidationError as error:
        raise _no_receipt(_faults(error)) from None
    except (ValueError, RecursionError) as error:
        raise _no_receipt(f"it is no JSON that can be read: {error}") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """With a key twice, one reader would check what another does not show."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def _no_receipt(fault: str) -> GalleryError:
    return GalleryError(f"not a receipt of erasure ({fault}); give the file that the erasure wrote")
