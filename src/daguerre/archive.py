"""Owns archives: a tar of plain files, with a manifest of their hashes at its end, and a reader that believes neither.

Only regular files with plain relative names are written, and nothing else is read: no links, no devices, no sparse
files, no name twice, none that begins with a dot or leads out of its folder.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from daguerre.errors import BackupFailed
from daguerre.version import __version__

FORMAT = 1
MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 256 * 1024**2  # bytes
_CHUNK = 1024 * 1024


class Entry(msgspec.Struct, frozen=True):
    """A file of an archive: its size in bytes, and its SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What an archive holds."""

    format: int
    version: str  # of the Daguerre that wrote it
    created_at: str
    files: Mapping[str, Entry]

    def __str__(self) -> str:
        return f"{len(self.files)} files, {self.bytes / 1e6:.1f} MB"

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(entry.bytes for entry in self.files.values())


def write(path: Path, files: Iterable[tuple[str, Path]]) -> Manifest:
    """Writes a new archive of these files by the names that they get; those that have vanished are left out.

    Raises:
        OSError: a file cannot be read, or the archive not be written; what is there of it is no archive.
    """
    entries: dict[str, Entry] = {}
    with path.open("xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, source in files:
                try:
                    entries[name] = _add(archive, name, source)
                except FileNotFoundError:  # taken away since it was listed
                    continue
            manifest = Manifest(FORMAT, __version__, datetime.now(UTC).isoformat(timespec="seconds"), entries)
            content = msgspec.json.encode(manifest)
            archive.addfile(_info(MANIFEST, len(content)), io.BytesIO(content))
        file.flush()
        os.fsync(file.fileno())
    return manifest


def _add(archive: tarfile.TarFile, name: str, source: Path) -> Entry:
    with source.open("rb") as file:
        status = os.fstat(file.fileno())
        content = _Hashed(file)
        archive.addfile(_info(name, status.st_size, status.st_mtime), content)
    return Entry(status.st_size, content.digest.hexdigest())


def _info(name: str, size: int, modified: float = 0.0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(modified), 0o600
    return info


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        content = self._file.read(size)
        self.digest.update(content)
        return content


def unpack(path: Path, place: Callable[[str], Path], accept: Callable[[Manifest], None]) -> Manifest:
    """Writes an archive's files where ``place`` says, durably, and holds each against the manifest.

    ``accept`` may refuse the whole before anything is written.

    Raises:
        BackupFailed: it is not whole, not as it was written, or holds what no archive of ours does.
        OSError: a file cannot be written.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = _members(archive)
            manifest = _manifest(archive, members.pop(MANIFEST, None))
            if {name: member.size for name, member in members.items()} != {
                name: entry.bytes for name, entry in manifest.files.items()
            }:
                raise BackupFailed("the archive does not hold what its manifest names")
            accept(manifest)
            for name, member in members.items():
                _extract(archive, member, place(name), manifest.files[name])
    except (tarfile.TarError, EOFError):
        raise BackupFailed("the archive is not a whole tar of plain files") from None
    return manifest


def _members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        tarfile.data_filter(member, "archive")  # what Python's own extraction would refuse
        if not _is_plain(member) or member.name in found:
            raise BackupFailed(f"the archive holds something that no backup does: {member.name!r}")
        found[member.name] = member
    return found


def _is_plain(member: tarfile.TarInfo) -> bool:
    parts = PurePosixPath(member.name).parts
    has_plain_name = "/".join(parts) == member.name and not any(part[0] in "./" or "\0" in part for part in parts)
    return has_plain_name and bool(parts) and member.isreg() and not member.issparse()


def _manifest(archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> Manifest:
    if member is None or member.size > _MANIFEST_LIMIT:
        raise BackupFailed("it has no manifest: it is no backup, or not a whole one")
    content = archive.extractfile(member)
    assert content is not None  # of a regular file
    try:
        manifest = msgspec.json.decode(content.read(), type=Manifest)
    except msgspec.DecodeError:
        raise BackupFailed("its manifest is broken") from None
    if manifest.format != FORMAT:
        raise BackupFailed(f"the archive is of format {manifest.format}; this Daguerre reads {FORMAT}")
    return manifest


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path, entry: Entry) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None  # of a regular file
    hashed = _Hashed(content)
    with place.open("xb") as file:
        shutil.copyfileobj(hashed, file, _CHUNK)
        file.flush()
        os.fsync(file.fileno())
    if hashed.digest.hexdigest() != entry.sha256:
        raise BackupFailed(f"{member.name} is not what was backed up: its hash differs")
