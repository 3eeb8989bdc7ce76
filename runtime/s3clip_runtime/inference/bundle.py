"""The bundle: a folder of exported graphs and one `manifest.json` that proves what they are.

The exporter writes it; the reader verifies every byte before anything is loaded. A graph is one
self-contained file: weights kept beside it as external data would escape the check.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from s3clip_runtime.errors import BundleError
from s3clip_runtime.inference.manifest import (
    PLAIN,
    SCHEMA_VERSIONS,
    Artefact,
    Attachment,
    Contract,
    Manifest,
    Role,
    Target,
)
from s3clip_runtime.inference.records import CURE, read_record, sha256_file, write_record

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle, made by `open`, or by `draft` while it is being proven."""

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path) -> Bundle:
        """Read the manifest and verify every file, every rule and every number against this runtime.

        Raises:
            BundleError: names the file, the rule, both values and the cure.
        """
        bundle = Bundle.draft(path)
        _check_proofs(path, bundle.manifest)
        return bundle

    @staticmethod
    def draft(path: Path) -> Bundle:
        """As `open`, but proofs may be missing: for those who make them.

        Raises:
            BundleError: as `open`.
        """
        if not path.is_dir():
            raise BundleError(f"bundle {path}: the folder does not exist; give the folder of s3clip-export")
        manifest = read_record(path / MANIFEST_FILE, Manifest, *SCHEMA_VERSIONS)
        _check_contract(path, manifest.contract)
        _check_roles(path, manifest.artefacts)
        for artefact in {(a.file, a.sha256, a.bytes): a for a in manifest.artefacts}.values():
            check_file(path, artefact.role, artefact)  # once each: targets share files of hundreds of MB
        for role, attachment in manifest.attachments.items():
            check_file(path, role, attachment)
        return Bundle(path, manifest)

    def enhances(self, height_px: float) -> bool:
        """Whether an LR clip of this height (`Clip.height_px`) is to be super-resolved; an HR clip never is.

        Without a switch all heights are.
        """
        switch = self.manifest.switch
        return switch is None or switch.max_height_px is None or height_px <= switch.max_height_px

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the bundle holds graphs for, in the manifest's order."""
        return tuple(dict.fromkeys(a.target for a in self.manifest.artefacts))

    def artefact(self, role: Role, target: Target) -> Artefact:
        """The manifest's entry of one graph.

        Raises:
            BundleError: the bundle holds no graphs for this target.
        """
        for artefact in self.manifest.artefacts:
            if artefact.role == role and artefact.target == target:
                return artefact
        raise BundleError(
            f"bundle {self.folder}: holds no {target} graphs, only {', '.join(map(str, self.targets))}; "
            "choose one of these or export again with s3clip-export"
        )

    def file(self, role: Role, target: Target) -> Path:
        """Path of one graph.

        Raises:
            BundleError: as in `artefact`.
        """
        return self.folder / self.artefact(role, target).file


def attachment_of(path: Path) -> Attachment:
    """The manifest's entry of a file that lies in the bundle's folder."""
    return Attachment(file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`. Raises as `write_record`."""
    # Runtimes of older schemas refuse these keys, also where they hold nothing.
    empty = {name for name in ("switch", "calibrations", "speeds") if not getattr(manifest, name)}
    write_record(folder / MANIFEST_FILE, manifest, without=empty)


def _check_contract(folder: Path, built: Contract) -> None:
    current = Contract.current(built.token_width, built.embedding_dim, built.patches)
    pairs = {name: (getattr(built, name), getattr(current, name)) for name in Contract.model_fields}
    faults = [f"{name} is {ours!r} here, {its!r} in it" for name, (its, ours) in pairs.items() if its != ours]
    if faults:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: the bundle was built for other numbers of inference: "
            f"{'; '.join(faults)}; {CURE} of this version"
        )


def _check_roles(folder: Path, artefacts: tuple[Artefact, ...]) -> None:
    found = Counter((a.role, a.target) for a in artefacts)
    for target in {PLAIN, *(a.target for a in artefacts)}:
        for role in get_args(Role):
            count = found[role, target]
            if count != 1:
                raise BundleError(
                    f"{folder / MANIFEST_FILE}: role {role} ({target}) must be there "
                    f"exactly once, found {count} times; {CURE}"
                )


def _check_proofs(folder: Path, manifest: Manifest) -> None:
    unproven = {str(a.target) for a in manifest.artefacts} - {proof.target for proof in manifest.proofs}
    if unproven:
        raise BundleError(
            f"{folder / MANIFEST_FILE}: the proof of {', '.join(sorted(unproven))} is missing; "
            f"s3clip-export verify writes it, or {CURE}"
        )


def check_file(folder: Path, role: str, artefact: Artefact | Attachment) -> None:
    """Hold a file to its entry.

    Raises:
        BundleError: it is missing, lies outside of the folder, or has another size or SHA-256.
    """
    path = folder / artefact.file
    # resolve() follows links too: a link out of the folder points at bytes nobody exported.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"{folder}: file {artefact.file!r} must lie in the bundle's folder, "
            f"it points to {path.resolve()}; {CURE}"
        )
    if not path.is_file():
        raise BundleError(f"{path}: the file of role {role} is missing; {CURE}")
    try:
        size = path.stat().st_size
        if size != artefact.bytes:
            raise BundleError(f"{path}: size must be {artefact.bytes} bytes, found {size}; {CURE}")
        digest = sha256_file(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if digest != artefact.sha256:
        raise BundleError(f"{path}: SHA-256 must be {artefact.sha256}, found {digest}; {CURE}")
