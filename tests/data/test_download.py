"""Downloads from a local server, and archives that must not be unpacked."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mcd_cli.data import archive, download
from mcd_cli.data.download import Download
from mcd_cli.errors import RunFailed, UserError
from support.pictures import one_line

BODY = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY; `breaks` lists after how many bytes each coming answer breaks off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.ranges = True
        self.shift = 0
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.asked: list[str | None] = []

    def at(self, name: str = "set.zip", md5: str = MD5) -> Download:
        return Download(f"http://127.0.0.1:{self.server_port}/{name}", md5)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        body, start = self.server.body, 0
        if asked and self.server.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match
            start = int(match[1]) + self.server.shift
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        rest = body[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.breaks.pop(0)] if self.server.breaks else rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCD_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "downloads"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(wanted: Download) -> Path:
    return download.fetch(wanted, lambda _: None, pause=0)


def test_a_whole_transfer(server: Server, folder: Path) -> None:
    said: list[str] = []
    path = download.fetch(server.at(), said.append)
    assert path == folder / "set.zip"
    assert path.read_bytes() == BODY
    assert not (folder / "set.zip.part").exists()
    assert said == ["downloading set.zip from 127.0.0.1: 0 of 1 MB"]
    fetch(server.at())
    assert server.asked == [None]  # the second time nothing is asked


def test_a_broken_transfer_goes_on_where_it_broke_off(server: Server, folder: Path) -> None:
    server.breaks = [300_000, 200_000]
    assert fetch(server.at()).read_bytes() == BODY
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_goes_on_too_and_half_a_file_never_passes_for_whole(server: Server, folder: Path) -> None:
    server.breaks = [100, 100, 100, 100]
    with pytest.raises(RunFailed, match="stopped after 400 of"):
        fetch(server.at())
    assert not (folder / "set.zip").exists()
    assert (folder / "set.zip.part").read_bytes() == BODY[:400]
    assert fetch(server.at()).read_bytes() == BODY
    assert server.asked[-1] == "bytes=400-"


def test_a_server_that_ignores_ranges_starts_over(server: Server, folder: Path) -> None:
    server.ranges = False
    folder.mkdir()
    (folder / "set.zip.part").write_bytes(BODY + b"more")
    assert fetch(server.at()).read_bytes() == BODY
    assert len(server.asked) == 1


def test_a_server_that_sends_another_range_is_not_believed(server: Server, folder: Path) -> None:
    server.breaks = [300_000]
    server.shift = -1000
    with pytest.raises(RunFailed, match="a different range"):
        fetch(server.at())
    assert (folder / "set.zip.part").read_bytes() == BODY[:300_000]


@pytest.mark.parametrize("left", [b"stale" * 100, BODY + b"more", BODY[:-1] + b"x"])
def test_what_lay_there_of_another_file_is_thrown_away(server: Server, folder: Path, left: bytes) -> None:
    folder.mkdir()
    (folder / "set.zip.part").write_bytes(left)
    assert fetch(server.at()).read_bytes() == BODY


def test_a_part_that_was_whole_all_along_is_taken(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "set.zip.part").write_bytes(BODY)
    assert fetch(server.at()).read_bytes() == BODY
    assert server.asked == [f"bytes={len(BODY)}-"]


def test_a_wrong_checksum_is_refused_and_not_kept(server: Server, folder: Path) -> None:
    server.body = b"a login page"
    with pytest.raises(RunFailed, match=f"not {MD5}") as error:
        fetch(server.at())
    one_line(error)
    assert not list(folder.glob("set.zip")) + list(folder.glob("*.part"))
    assert len(server.asked) == 1


def test_an_error_of_the_server_is_tried_again_but_not_one_of_ours(server: Server, folder: Path) -> None:
    server.statuses = [503, 500]
    assert fetch(server.at()).read_bytes() == BODY
    server.statuses = [404]
    server.asked.clear()
    with pytest.raises(RunFailed, match="answers 404"):
        fetch(server.at("other.zip"))
    assert len(server.asked) == 1


def test_offline_is_one_line_that_says_what_to_put_where(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/set.zip"
        with pytest.raises(RunFailed) as error:
            fetch(Download(url, MD5))
    text = one_line(error)
    assert error.value.exit_code == 1
    assert all(part in text for part in ("set.zip", url, str(folder), "refused"))


# Archives


def tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                opened.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                opened.addfile(info, io.BytesIO(member[1]))
    return path


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def test_files_and_folders_come_out_as_they_went_in(folder: Path, tmp_path: Path) -> None:
    for path in (
        tar(tmp_path / "a.tar.gz", special("d", tarfile.DIRTYPE), ("d/ü.txt", b"1"), ("e/f/g", b"2")),
        zipped(tmp_path / "a.zip", ("d/", b""), ("d/ü.txt", b"1"), ("e/f/g", b"2")),
    ):
        said: list[str] = []
        out = archive.unpacked(path, said.append)
        assert archive.unpacked(path, said.append) == out
        assert said == [f"unpacking {path.name}"]  # once
        files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert files == {"d/ü.txt": b"1", "e/f/g": b"2"}


BAD = {
    "absolute": lambda p: tar(p, ("/tmp/x", b"")),
    "up": lambda p: tar(p, ("a/../../x", b"")),
    "link": lambda p: tar(p, special("a", tarfile.SYMTYPE, "/etc"), ("a/x", b"")),
    "hard link": lambda p: tar(p, special("a", tarfile.LNKTYPE, "/etc/passwd")),
    "device": lambda p: tar(p, special("a", tarfile.CHRTYPE)),
    "pipe": lambda p: tar(p, special("a", tarfile.FIFOTYPE)),
    "zip absolute": lambda p: zipped(p, ("/x", b"")),
    "zip up": lambda p: zipped(p, ("../x", b"")),
    "zip link": lambda p: zipped(p, (zip_link("a"), b"/etc")),
}


@pytest.mark.parametrize("kind", BAD)
def test_members_that_leave_the_folder_or_are_no_files_are_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    path = BAD[kind](tmp_path / "in" / "bad")
    with pytest.raises(UserError, match="is not safe to ") as error:
        archive.unpacked(path, lambda _: None)
    one_line(error)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock" and p != path]


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path: Path) -> None:
    for i, path in enumerate((tar(tmp_path / "t", ("x", bytes(10**6))), zipped(tmp_path / "z", ("x", bytes(10**6))))):
        (tmp_path / f"out{i}").mkdir()
        with pytest.raises(UserError, match="unpacks to more than"):
            archive.extract(path, tmp_path / f"out{i}", max_bytes=500_000)
        archive.extract(path, tmp_path / f"whole{i}", max_bytes=10**6)


@pytest.mark.parametrize("kind", ["zip", "tar", "text", "empty"])
def test_a_broken_archive_is_told(folder: Path, tmp_path: Path, kind: str) -> None:
    noise = hashlib.shake_256(b"").digest(100_000)
    path = tmp_path / "in.archive"
    {"zip": zipped, "tar": tar}.get(kind, lambda path, _: path.write_text(kind))(path, ("x", noise))
    whole = path.read_bytes()
    path.write_bytes({"text": whole, "empty": b""}.get(kind, whole[:50_000]))
    with pytest.raises(UserError, match="is damaged") as error:
        archive.unpacked(path, lambda _: None)
    one_line(error)
    assert not list((tmp_path / "unpacked").glob("*tmp*"))


def test_a_flipped_bit_in_a_zip_is_told(folder: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("x", hashlib.shake_256(b"").digest(100_000)))
    values = bytearray(path.read_bytes())
    values[50_000] ^= 1
    path.write_bytes(values)
    with pytest.raises(UserError, match="is damaged"):
        archive.unpacked(path, lambda _: None)
