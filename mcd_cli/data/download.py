"""Fetching the official archives: resumed where they broke off, and whole only if their checksum says so."""

from __future__ import annotations

import errno
import hashlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mcd_cli.data.cache import cache_folder, cache_root, lock
from mcd_cli.errors import RunFailed, reason_of

ATTEMPTS = 4
T = TypeVar("T")

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 2**18  # bytes
REPORT_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Download:
    """An archive on the web, with the checksum its makers publish."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def downloads() -> Path:
    """Where fetched archives are kept, and looked for first."""
    return cache_root() / "downloads"


def fetch(download: Download, report: Callable[[str], None], pause: float = 1.0) -> Path:
    """The archive in the downloads folder, fetched if it is not there yet.

    Until its checksum is right it is called NAME.part, from which an interrupted transfer goes on. `pause`:
    seconds before the second attempt, doubled each time. Raises RunFailed in one line that says what to put
    where by hand.
    """
    folder = cache_folder("downloads")
    target = folder / download.name
    part = folder / f"{download.name}.part"
    with lock(folder / f"{download.name}.lock"):
        if target.exists():
            return target
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            resumed = part.exists()
            try:
                _transfer(download, part, report)
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"the server answers {error.code} {error.reason}"
                if error.code != 416 or not resumed:  # 416: nothing is left to send, so see what is there
                    if error.code < 500:
                        break
                    continue
            except _Local as error:
                raise RunFailed(f"cannot write {str(part)!r}: {error}") from error
            except (OSError, HTTPException) as error:
                reason = reason_of(getattr(error, "reason", error))
                continue
            md5 = _md5(part)
            if md5 == download.md5:
                part.rename(target)
                return target
            part.unlink()
            reason = f"its md5 is {md5}, not {download.md5}"
            if not resumed:  # what was there before may have been wrong; what came whole just now is
                break
    raise RunFailed(
        f"cannot download {download.name} ({reason}); fetch {download.url} elsewhere and put it into {str(folder)!r}"
    )


class _Local(Exception):
    """This machine's disk failed, not the network."""


def _transfer(download: Download, part: Path, report: Callable[[str], None]) -> None:
    """Appends to `part` until the file is whole; raises OSError or HTTPException where the network fails."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "mcd", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(download.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        have, total = _range(response, have)
        size = f" of {total / 1e6:.0f}" if total is not None else ""
        report(f"downloading {download.name} from {urlsplit(download.url).hostname}: {have / 1e6:.0f}{size} MB")
        last_report = time.monotonic()
        with _local(lambda: part.open("r+b" if part.exists() else "w+b")) as file:
            _local(lambda: file.truncate(have))
            file.seek(have)
            while block := response.read(BLOCK):
                _local(partial(file.write, block))
                have += len(block)
                if time.monotonic() - last_report > REPORT_EVERY:
                    last_report = time.monotonic()
                    report(f"  {download.name}: {have / 1e6:.0f}{size} MB")
            _local(file.flush)
    if total is not None and have != total:  # a closed connection reads like an end
        raise ConnectionError(f"the transfer broke off after {have} of {total} bytes")


def _range(response: HTTPResponse, have: int) -> tuple[int, int | None]:
    """Bytes to keep of the part, and the size of the whole, as far as the server says."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise HTTPException("the server sent another range than asked for")
        return have, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")  # no range: everything, from the start
    return 0, None if length is None else int(length)


def _local(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise _Local("no space left; free some or set MCD_CACHE elsewhere" if full else reason_of(error)) from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
