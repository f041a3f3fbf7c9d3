"""Downloads the official archives: interrupted transfers are resumed, and the checksum of each archive is verified."""

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
    """An archive on the web, with its published checksum."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def downloads() -> Path:
    """The folder where downloaded archives are stored and searched first."""
    return cache_root() / "downloads"


def fetch(download: Download, report: Callable[[str], None], pause: float = 1.0) -> Path:
    """The path of an archive in the downloads folder; it is downloaded if it is not there yet.

    The file is called NAME.part until its checksum matches; an interrupted transfer resumes from it. pause: seconds
    before the second attempt, doubled each time. Raises RunFailed, which explains how to provide the file by hand.
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
                if error.code != 416 or not resumed:  # 416: nothing left to send, so check the part
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
            if not resumed:  # a resumed file may contain old errors; one downloaded as a whole would fail again
                break
    raise RunFailed(
        f"cannot download {download.name} ({reason}); get {download.url} another way and put it into {str(folder)!r}"
    )


class _Local(Exception):
    """This machine's disk failed, not the network."""


def _transfer(download: Download, part: Path, report: Callable[[str], None]) -> None:
    """Append to `part` until the file is complete. Raises OSError or HTTPException if the network fails."""
    size_so_far = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "mcd", **({"Range": f"bytes={size_so_far}-"} if size_so_far else {})}
    request = urllib.request.Request(download.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        size_so_far, total = _range(response, size_so_far)
        size = f" of {total / 1e6:.0f}" if total is not None else ""
        report(f"downloading {download.name} from {urlsplit(download.url).hostname}: {size_so_far / 1e6:.0f}{size} MB")
        last_report = time.monotonic()
        with _local(lambda: part.open("r+b" if part.exists() else "w+b")) as file:
            _local(lambda: file.truncate(size_so_far))
            file.seek(size_so_far)
            while block := response.read(BLOCK):
                _local(partial(file.write, block))
                size_so_far += len(block)
                if time.monotonic() - last_report > REPORT_EVERY:
                    last_report = time.monotonic()
                    report(f"  {download.name}: {size_so_far / 1e6:.0f}{size} MB")
            _local(file.flush)
    if total is not None and size_so_far != total:  # a closed connection looks like the end of the file
        raise ConnectionError(f"the transfer stopped after {size_so_far} of {total} bytes")


def _range(response: HTTPResponse, size_so_far: int) -> tuple[int, int | None]:
    """How many bytes of the part to keep, and the size of the whole file if the server states it."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != size_so_far:
            raise HTTPException("the server sent a different range from the one requested")
        return size_so_far, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")  # no range: everything, from the start
    return 0, None if length is None else int(length)


def _local(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise _Local(
            "no space left; free some space or point MCD_CACHE to another disk" if full else reason_of(error)
        ) from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
