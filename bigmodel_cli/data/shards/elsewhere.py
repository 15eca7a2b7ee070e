"""Files of s3 and other places, through fsspec."""

from __future__ import annotations

from typing import IO, Any

from bigmodel_cli.data.shards.remote import PIECE, Again, Remote, add, same
from bigmodel_cli.errors import DataError, MissingData
from bigmodel_cli.packages import need

VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified")
"""What systems call a value that changes with the content, the better ones first."""


def _system(url: str) -> Any:
    fsspec = need("fsspec", "cloud", f"data from {url.partition('://')[0]}://")
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: fsspec cannot open it: {error}") from None


def look(url: str) -> Remote:
    """The size and version of a file. Raises `Again` and `MissingData`."""
    system, path = _system(url)
    try:
        info = system.info(path)
    except FileNotFoundError:
        raise MissingData(f"{url}: there is no such file") from None
    except Exception as error:  # whatever a cloud's own library raises
        raise Again(f"{type(error).__name__}: {error}") from None
    size = info.get("size")
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), None)
    return Remote(url, size if type(size) is int else None, version)


def append(url: str, file: IO[bytes], start: int, limit: int | None, versions: set[str]) -> bool:
    """Append what follows the first `start` bytes of a file; True, since that is all of it.

    Raises `Again`, `Changed`, `MissingData` and `DataError`.
    """
    system, path = _system(url)
    same(look(url).version, versions)
    try:
        with system.open(path, "rb") as source:
            source.seek(start)
            while piece := source.read(PIECE):
                add(url, file, piece, limit)
    except FileNotFoundError:
        raise MissingData(f"{url}: there is no such file") from None
    except DataError:
        raise
    except Exception as error:  # whatever a cloud's own library raises
        raise Again(f"{type(error).__name__}: {error}") from None
    return True


def listed(url: str) -> list[str]:
    """The URLs of the files in a folder, of places that can be asked for that."""
    system, path = _system(url)
    try:
        return [str(system.unstrip_protocol(name)) for name in sorted(system.find(path))]
    except Exception as error:
        raise DataError(f"{url}: its files cannot be listed: {error}") from None
