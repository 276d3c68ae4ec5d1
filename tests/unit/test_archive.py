"""Archives: what is written comes back, and nothing else is ever taken for it."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daguerre import archive
from daguerre.errors import BackupFailed

CONTENT = {"data/daguerre.db": b"rows", "outputs/a.png": b"picture" * 1000, "weights/catalog.toml": b""}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """An archive of CONTENT."""
    for name, content in CONTENT.items():
        path = tmp_path / "from" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    path = tmp_path / "archive.tar"
    archive.write(path, [(name, tmp_path / "from" / name) for name in (*CONTENT, "outputs/gone.png")])
    return path


def _unpack(path: Path, into: Path) -> archive.Manifest:
    return archive.unpack(path, lambda name: into / name, lambda _: None)


def _tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as made:
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def _manifest(files: dict[str, bytes], **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    fields = {"format": 1, "version": "0", "created_at": "now", "files": entries} | changes
    return tarfile.TarInfo("manifest.json"), json.dumps(fields).encode()


def test_what_is_written_comes_back(written: Path, tmp_path: Path) -> None:
    """Byte by byte; a file that had vanished is not in the manifest either."""
    manifest = _unpack(written, tmp_path / "to")
    assert {name: (tmp_path / "to" / name).read_bytes() for name in manifest.files} == CONTENT
    assert manifest.bytes == sum(map(len, CONTENT.values()))


def test_any_tar_reads_it(written: Path) -> None:
    """Without Daguerre: plain files that only their owner may read."""
    with tarfile.open(written) as plain:
        assert [member.name for member in plain] == [*CONTENT, "manifest.json"]
        assert all(member.isreg() and member.mode == 0o600 for member in plain)


def test_a_bit_anywhere(written: Path, tmp_path: Path) -> None:
    """Flipped in any place of a file's content or in the manifest's hashes, it is refused."""
    whole = written.read_bytes()
    with tarfile.open(written) as plain:
        places = [member.offset_data + member.size // 2 for member in plain if member.size]
    for number, place in enumerate(places):
        written.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BackupFailed):
            _unpack(written, tmp_path / f"to-{number}")


def test_cut_short(written: Path, tmp_path: Path) -> None:
    """At any length, it is refused before anything is asked of the place where files would go."""
    whole = written.read_bytes()
    with tarfile.open(written) as plain:
        end = plain.getmember("manifest.json").offset_data
    for length in (0, 1, 511, 512, 600, 4000, end // 2, end - 1, end + 10):
        written.write_bytes(whole[:length])
        with pytest.raises(BackupFailed):
            _unpack(written, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def _link(kind: bytes) -> Callable[[], tarfile.TarInfo]:
    def make() -> tarfile.TarInfo:
        info = tarfile.TarInfo("outputs/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        return info

    return make


BAD: dict[str, Callable[[], tarfile.TarInfo]] = {
    **{
        name: (lambda name=name: tarfile.TarInfo(name))  # type: ignore[misc]
        for name in (
            "../evil",
            "outputs/../../evil",
            "/etc/evil",
            "outputs//evil",
            "./outputs/evil",
            "outputs/.restore/evil",
            "outputs/.hidden",
            "..",
            ".",
        )
    },
    "symbolic link": _link(tarfile.SYMTYPE),
    "hard link": _link(tarfile.LNKTYPE),
    "device": _link(tarfile.CHRTYPE),
    "fifo": _link(tarfile.FIFOTYPE),
    "folder": _link(tarfile.DIRTYPE),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_what_is_no_plain_file(make: Callable[[], tarfile.TarInfo], tmp_path: Path) -> None:
    """Names that lead elsewhere, links and devices are refused, even if the manifest names them."""
    info = make()
    content = b"x" if info.isreg() else b""
    path = _tar(tmp_path / "bad.tar", [(info, content), _manifest({info.name: content})])
    with pytest.raises(BackupFailed):
        _unpack(path, tmp_path / "to" / "deep")
    assert {found.name for found in tmp_path.rglob("*")} == {"bad.tar"}


@pytest.mark.parametrize(
    "manifest",
    [
        _manifest({"outputs/a.png": b"x", "outputs/b.png": b"y"}),  # one more than there is
        _manifest({}),  # one less
        _manifest({"outputs/a.png": b"xx"}),  # of another size
        _manifest({"outputs/a.png": b"x"}, format=2),
        (tarfile.TarInfo("manifest.json"), b"[]"),
        (tarfile.TarInfo("manifest.json"), b"{"),
        (tarfile.TarInfo("other.json"), b"{}"),
    ],
)
def test_a_manifest_that_lies(manifest: tuple[tarfile.TarInfo, bytes], tmp_path: Path) -> None:
    """Or is none."""
    path = _tar(tmp_path / "bad.tar", [(tarfile.TarInfo("outputs/a.png"), b"x"), manifest])
    with pytest.raises(BackupFailed):
        _unpack(path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_name_twice(tmp_path: Path) -> None:
    """The second could replace what was checked."""
    twice = [(tarfile.TarInfo("outputs/a.png"), b"x"), (tarfile.TarInfo("outputs/a.png"), b"y")]
    path = _tar(tmp_path / "bad.tar", [*twice, _manifest({"outputs/a.png": b"x"})])
    with pytest.raises(BackupFailed):
        _unpack(path, tmp_path / "to")


def test_a_compressed_one(written: Path, tmp_path: Path) -> None:
    """A small file that unfolds to a huge one is not read at all."""
    with tarfile.open(tmp_path / "small.tar.gz", "w:gz") as made:
        made.add(written, "outputs/a.png")
    with pytest.raises(BackupFailed):
        _unpack(tmp_path / "small.tar.gz", tmp_path / "to")


def test_who_does_not_accept(written: Path, tmp_path: Path) -> None:
    """Nothing is written then."""

    def refuse(manifest: archive.Manifest) -> None:
        assert set(manifest.files) == set(CONTENT)
        raise BackupFailed("no")

    with pytest.raises(BackupFailed, match="no"):
        archive.unpack(written, lambda name: tmp_path / "to" / name, refuse)
    assert not (tmp_path / "to").exists()
