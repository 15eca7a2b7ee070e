"""Files over http and https, with the standard library: what servers do, and do wrong."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import functools
import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import IO, Any

from bigmodel_cli.data.shards.remote import PIECE, Again, Remote, add, same
from bigmodel_cli.errors import DataError, MissingData

TIMEOUT = 30.0  # seconds without a byte
LEAST = 1024
"""Bytes a second, over `TIMEOUT`: with fewer an answer is given up, and asked for again."""
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed."""
NO_HEAD = {400, 403, 405, 501}
"""Statuses of servers that may only answer GET; a signed address is of one method."""
SAFE = "/:@!$&'()*+,;=~%"
"""What stays as it is in the path of an address."""


def as_sent(url: str) -> str:
    """An address as it is sent: spaces, other letters and a % that begins no code are quoted."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise DataError(f"{url}: {host!r} is not the name of a host") from None
    path, query = (
        urllib.parse.quote(
            re.sub("%(?![0-9A-Fa-f]{2})", "%25", text), safe, errors="surrogateescape"
        )
        for text, safe in ((parts.path, SAFE), (parts.query, SAFE + "?"))
    )
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def look(url: str) -> Remote:
    """The size and version of a file, where its server says them.

    Raises `Again`, `MissingData`, `DataError`.
    """
    try:
        with _opened(url, method="HEAD") as answer:
            found = _described(url, answer.status, answer.headers)
            if found.size:  # some say 0 to HEAD, whatever the file has
                return found
    except urllib.error.HTTPError as error:
        if error.code not in NO_HEAD:
            raise _refused(url, error) from None
    try:
        with _opened(url, {"Range": "bytes=0-0"}) as answer:
            return _described(url, answer.status, answer.headers)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # an empty file has no first byte
            return Remote(url, 0, _version(error.headers))
        raise _refused(url, error) from None


def _described(url: str, status: int, headers: Message) -> Remote:
    place = _place(headers) if status == 206 else None
    size = place[1] if place is not None else _length(headers)
    return Remote(url, None if _packing(url, headers) else size, _version(headers))


def _version(headers: Message) -> str | None:
    """What an answer says of its content, and changes with it: a weak tag only where there is
    nothing better.
    """
    tag, changed = headers.get("ETag"), headers.get("Last-Modified")
    return tag if tag and is_exact(tag) else changed or tag


def is_exact(version: str | None) -> bool:
    """Whether two contents of this version have the same bytes: not so of a weak tag."""
    return version is not None and not version.startswith("W/")


def _length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _place(headers: Message) -> tuple[int, int | None] | None:
    """(first byte, size of the whole file) of a part of a file."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if match is None:
        return None
    return int(match[1]), int(match[2]) if match[2] != "*" else None


def _packing(url: str, headers: Message) -> str:
    """What a server packed an answer with, though asked not to. That a file which is packed itself
    is called so is a habit of some, and is left.
    """
    name = headers.get("Content-Encoding", "").strip().lower().removeprefix("x-")
    path = urllib.parse.urlsplit(url).path.lower()
    own = {"gzip": (".gz", ".tgz"), "zstd": (".zst", ".zstd")}.get(name, ())
    return "" if name in ("", "identity") or path.endswith(own or ("\0",)) else name


def append(
    url: str, file: IO[bytes], start: int, limit: int | None, versions: set[str]
) -> bool | None:
    """Append what follows the first `start` bytes of a file: True where that is all of it, False
    where it was cut, None where the server does not say.

    Raises `Again`, `Changed`, `MissingData`, `DataError`.
    """
    try:
        with _opened(url, {"Range": f"bytes={start}-"} if start else {}) as answer:
            headers, is_part = answer.headers, answer.status == 206
            if packing := _packing(url, headers):
                raise DataError(
                    f"{url}: its server sends it packed by {packing}, though asked not to; have it"
                    " send the file as it is"
                )
            same(_version(headers), versions)
            first, total = _place(headers) or (-1, None) if is_part else (0, _length(headers))
            if is_part and first != start:
                raise Again("the answer is of another place of the file than was asked for")
            came = first
            for piece in _pieces(answer):  # a server without ranges sends all anew
                add(url, file, piece[max(0, start - came) :], limit)
                came += len(piece)
            if total is not None:
                return came >= total
            is_ended = headers.get("Transfer-Encoding", "").lower() == "chunked"
            return True if is_ended else None
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left: the size is not known otherwise
            return True
        raise _refused(url, error) from None
    except http.client.IncompleteRead:
        return False
    except (OSError, http.client.HTTPException) as error:
        raise Again(str(error) or type(error).__name__) from None


def _pieces(answer: Any) -> Iterator[bytes]:
    """The bytes of an answer as they come. Raises `Again` where too few of them do."""
    began, got = time.monotonic(), 0
    while piece := answer.read1(PIECE):
        got += len(piece)
        elapsed = time.monotonic() - began
        if elapsed > TIMEOUT:
            if got < LEAST * elapsed:
                raise Again(f"{got / elapsed:.0f} bytes a second", slow=True)
            began, got = time.monotonic(), 0
        yield piece


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https alone."""

    def redirect_request(self, req: Any, *others: Any) -> Any:
        """The request to send instead, with the same method."""
        *_, url = others
        if url.partition(":")[0].lower() not in ("http", "https"):
            raise DataError(f"{req.full_url}: it leads to {url}, which is not http")
        found = super().redirect_request(req, *others)
        if found is not None:
            found.method = req.get_method()
        return found


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Only http and https, whatever an answer redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


@contextlib.contextmanager
def _opened(
    url: str, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> Iterator[Any]:
    """The answer to a request.

    Raises `Again` for statuses that may pass, HTTPError for others, and `DataError`.
    """
    request = urllib.request.Request(
        as_sent(url), headers={"Accept-Encoding": "identity", **(headers or {})}, method=method
    )
    try:
        answer = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in PASSING:
            raise Again(f"status {error.code}", _seconds(error.headers)) from None
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DataError(f"{url}: its server cannot be trusted: {error.reason}") from None
        raise Again(str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise Again(str(error) or type(error).__name__) from None
    with contextlib.closing(answer):
        yield answer


def _refused(url: str, error: urllib.error.HTTPError) -> DataError:
    if error.code in (404, 410):
        return MissingData(f"{url}: there is no such file (status {error.code})")
    return DataError(f"{url}: refused with status {error.code} ({error.reason})")


def _seconds(headers: Message) -> float | None:
    """How long a server asks to be left alone: a number of seconds, or a time."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
