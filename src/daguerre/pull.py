"""Owns pulling: a model of the catalogue from the Hub into the weights folder, whole and checked, or not at all.

Files are gathered in ``weights/.pull/NAME`` and take their place in one rename when every checksum is right. What is
there of an unfinished file is kept under its checksum, so that an interrupted pull goes on where it was: the library's
own downloads begin anew, so only its client is used. Only configurations, tokenizers and safetensors are fetched: no
code, no pickles.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

import msgspec

from daguerre import hubclient, safety_checkers, weightfile
from daguerre.catalog import VAES, Catalog, Model, Source
from daguerre.errors import CatalogError, PullFailed
from daguerre.safety_checkers import FOLDER, SafetyChecker

PARTIAL = ".pull"
PARTS = ".parts"
_TEXTS = (".json", ".txt", ".model")  # of configurations and tokenizers
#: Weights, whole or in shards, and the indexes of shards: plain or of a variant, which either library puts elsewhere.
_WEIGHTS = re.compile(
    r"(?P<base>[^.]+?)(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors(\.index(\.(?P<index_variant>\w+))?\.json)?"
)
_CHUNK = 1024 * 1024

#: Called with the file that is being fetched, and the bytes that are there of all.
OnProgress = Callable[[str, int, int], None]


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a repository: its size in bytes, and the checksum that the Hub keeps of it."""

    name: str
    size: int
    sha256: str | None  # of large files
    git_sha1: str | None  # of the others, as git names a blob

    @property
    def checksum(self) -> str | None:
        """The one that it is held against."""
        return self.sha256 or self.git_sha1


def pull(
    model: Model,
    catalog: Catalog,
    weights: Path,
    endpoint: str,
    on_progress: OnProgress,
    private_hosts: tuple[str, ...] = (),
) -> None:
    """Fetches a model, and the VAE that its entry names, as far as they are not here.

    Redirects of the Hub lead to public addresses, or to ``private_hosts``.

    Raises:
        PullFailed: the Hub cannot be reached, refuses, or sends something else than it promises.
        CatalogError: the catalogue does not say where from, or what came is no model.
    """
    hubclient.guard(endpoint, private_hosts)
    if model.vae is not None and not model.vae.exists():
        source = catalog.vae(model.vae.name)
        _fetch(source, model.vae, weights / PARTIAL / f"{VAES}-{model.vae.name}", endpoint, on_progress, _vet)
    if model.source is None:
        raise CatalogError(f"the catalogue names no repository for model {model.name!r}")
    suffix = ".safetensors" if model.source.file else ""
    place = weights / f"{model.name}{suffix}"
    if not place.exists():
        _fetch(model.source, place, weights / PARTIAL / model.name, endpoint, on_progress, _vet)


def pull_checker(
    checker: SafetyChecker,
    weights: Path,
    endpoint: str,
    on_progress: OnProgress,
    private_hosts: tuple[str, ...] = (),
) -> None:
    """Fetches a safety checker, in the same way.

    Raises:
        PullFailed, CatalogError: as `pull` does.
    """
    hubclient.guard(endpoint, private_hosts)
    if checker.source is None:
        raise CatalogError(f"the catalogue names no repository for safety checker {checker.name!r}")
    partial = weights / PARTIAL / f"{FOLDER}-{checker.name}"
    _fetch(checker.source, checker.path, partial, endpoint, on_progress, safety_checkers.vet)


def _fetch(
    source: Source,
    place: Path,
    partial: Path,
    endpoint: str,
    on_progress: OnProgress,
    vet: Callable[[Path], None],
) -> None:
    from huggingface_hub import hf_hub_url

    commit, files = _listed(source, endpoint)
    total, done = sum(file.size for file in files), 0
    for file in files:
        if file.name.endswith(".safetensors") and (partial / "model_index.json").exists():
            weightfile.refuse_code(partial)  # before gigabytes are fetched for nothing
        if not (partial / file.name).exists() and not _is_cached(source, commit, file, partial):
            url = hf_hub_url(source.repo, file.name, revision=commit, endpoint=endpoint)
            with _translated(source):
                _download(url, file, partial, _counted(file, done, total, on_progress))
        done += file.size
        on_progress(file.name, done, total)
    shutil.rmtree(partial / PARTS, ignore_errors=True)
    arrived = partial / source.file if source.file else partial
    vet(arrived)
    place.parent.mkdir(parents=True, exist_ok=True)
    arrived.rename(place)
    shutil.rmtree(partial, ignore_errors=True)


def _vet(arrived: Path) -> None:
    if arrived.is_file():
        weightfile.read_header(arrived)
    elif (arrived / "model_index.json").exists():
        weightfile.vet_folder(arrived)
    else:
        weightfile.vet_component(arrived)


def _listed(source: Source, endpoint: str) -> tuple[str, list[RemoteFile]]:
    """The commit that the revision means now, and the files of it that are wanted."""
    from huggingface_hub import HfApi

    with _translated(source):
        info = HfApi(endpoint=endpoint).model_info(source.repo, revision=source.revision, files_metadata=True)
    files = [
        RemoteFile(sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id)
        for sibling in info.siblings or []
    ]
    wanted = sorted(_wanted(source, files), key=lambda file: (file.name.endswith(".safetensors"), file.name))
    if not wanted or info.sha is None:
        raise PullFailed(f"{source.repo} holds no model in safetensors that could be served")
    return info.sha, wanted


def _wanted(source: Source, files: Iterable[RemoteFile]) -> Iterator[RemoteFile]:
    """Of a single-file source that file; else configurations, tokenizers, and one variant of each part's weights."""
    names = {file.name for file in files}
    for file in files:
        path = PurePosixPath(file.name)
        is_plain = not path.is_absolute() and ".." not in path.parts and "\\" not in file.name
        if not is_plain or file.name.startswith(".") or weightfile.SAFETY_CHECKER in path.parts:
            continue
        if source.file is not None:
            if file.name == source.file:
                yield file
        elif len(path.parts) <= 2:
            weights = _WEIGHTS.fullmatch(path.name)
            if (weights is None and path.suffix in _TEXTS) or (
                weights is not None and _is_wanted_weight(path, weights, source.variant, names)
            ):
                yield file


def _is_wanted_weight(path: PurePosixPath, weights: re.Match[str], variant: str | None, names: set[str]) -> bool:
    """Whether weights, or an index of their shards, are of the variant; plain ones, where the part has no such."""
    if len(path.parts) == 1 and "model_index.json" in names:
        return False  # beside model_index.json lie whole checkpoints of the same model
    own = weights["variant"] or weights["index_variant"]
    if own is not None or variant is None:
        return own == variant
    return not any(name.startswith(f"{path.parent}/{weights['base']}.{variant}") for name in names)


def _is_cached(source: Source, commit: str, file: RemoteFile, partial: Path) -> bool:
    """Takes a file from the Hub's own cache (``HF_HOME``) if another program has fetched it before, and it is whole."""
    from huggingface_hub import try_to_load_from_cache

    cached, checksum = try_to_load_from_cache(source.repo, file.name, revision=commit), file.checksum
    if not isinstance(cached, str) or checksum is None or _digest(Path(cached), file) != checksum:
        return False
    _need_room(partial, file.size)
    part = partial / PARTS / checksum
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cached, part)
    _keep(part, file, partial)
    return True


def _download(url: str, file: RemoteFile, partial: Path, progress: "type[_Progress]") -> None:
    """Goes on where an earlier attempt was cut off; the library tries again when the line drops or stalls."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = partial / PARTS / (file.checksum or "unknown")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as content:
        have = content.tell()
        _need_room(partial, file.size - have)
        http_get(
            url,
            content,
            resume_size=have,
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.name,
            tqdm_class=progress,
        )
    _keep(part, file, partial)


def _keep(part: Path, file: RemoteFile, partial: Path) -> None:
    """Gives a file its name if it is what the Hub promised; one that differs is removed, to be fetched anew."""
    if file.checksum is None or _digest(part, file) != file.checksum:
        part.unlink()
        raise PullFailed(f"{file.name} is not what the Hub promised: its checksum differs; it was removed")
    (partial / file.name).parent.mkdir(exist_ok=True)
    part.rename(partial / file.name)


def _need_room(folder: Path, size: int) -> None:
    if shutil.disk_usage(folder).free < size:
        raise PullFailed(f"there is no room for it on the disk: {size / 1e9:.1f} GB more are needed")


def _digest(path: Path, file: RemoteFile) -> str:
    """A file's hash, of the kind that the Hub keeps of it."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())  # noqa: S324
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _translated:  # noqa: N801 - used as a function
    """Turns what the library raises into one line for a person, without addresses."""

    def __init__(self, source: Source) -> None:
        self._repo = source.repo

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, PullFailed):
            return
        name = type(error).__name__
        reason = _REASONS.get(name, f"the Hub could not be reached, or broke off ({name}); pulling again goes on")
        raise PullFailed(f"{self._repo}: {reason}") from error


_REASONS = {
    "GatedRepoError": "its licence must be accepted on the Hub first, and HF_TOKEN set to a token of that account",
    "RepositoryNotFoundError": "there is no such repository, or it is private and HF_TOKEN does not open it",
    "RevisionNotFoundError": "it has no such revision",
    "UrlRefused": "it redirects to an address that is not public; the setting private_hosts can allow that",
    "EntryNotFoundError": "a file of it is gone",
    "RemoteEntryNotFoundError": "a file of it is gone",
}


class _Progress:
    """What the library calls instead of a progress bar of its own."""

    file = ""
    before = 0
    total = 0
    on_progress: OnProgress

    def __init__(self, *_args: Any, initial: int = 0, **_options: Any) -> None:
        self._done = initial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float | None = 1) -> None:
        """So many bytes more; fewer where a server began anew."""
        self._done += int(count or 0)
        type(self).on_progress(self.file, self.before + self._done, self.total)

    def close(self) -> None:
        """Nothing is open."""


def _counted(file: RemoteFile, before: int, total: int, on_progress: OnProgress) -> type[_Progress]:
    class Progress(_Progress):
        pass

    Progress.file, Progress.before, Progress.total = file.name, before, total
    Progress.on_progress = staticmethod(on_progress)
    return Progress
