"""Small files that would be large in memory: `python -m tests.support.bombs FOLDER NAME …` reads each, prints the cost.

A process of its own, so that the peak is theirs; without names: all of them.
"""

from __future__ import annotations

import gzip
import io
import pickle
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from mcd_cli.errors import McdError

from .pictures import picture

GB = 10**9


def gzip_of_zeros(path: Path, head: bytes, num_bytes: int) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(head)
        for _ in range(num_bytes // 2**24):
            file.write(bytes(2**24))


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def archive(folder: Path, kind: bytes, num_bytes: int) -> None:
    from mcd_cli.data.archive import extract

    gzip_of_zeros(folder / "x.tar.gz", header("x", kind, num_bytes), num_bytes)
    (folder / "out").mkdir()
    extract(folder / "x.tar.gz", folder / "out", max_bytes=50_000_000)


def zipped(folder: Path) -> None:
    from mcd_cli.data.archive import extract

    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as file, file.open("x", "w") as member:
        for _ in range(GB // 2**24):
            member.write(bytes(2**24))
    (folder / "out").mkdir()
    extract(folder / "x.zip", folder / "out", max_bytes=50_000_000)


def memos(folder: Path, program: bytes) -> None:
    from mcd_cli.data.cifar_pickle import load_pickle

    (folder / "train").write_bytes(program)
    load_pickle(folder / "train")


def lists(folder: Path) -> None:
    from mcd_cli.data.cifar import CIFAR10, _python

    labels: list[object] = [0] * 10
    for _ in range(11):
        labels = [labels] * 10
    (folder / "x").write_bytes(pickle.dumps({b"data": b"", b"labels": labels}, protocol=3))
    _python(CIFAR10, folder / "x")


def images(folder: Path) -> None:
    """36 million pixels in 100 kB each, as many at a time as there are threads; the last one is torn."""
    from mcd_cli.data import images
    from mcd_cli.data.dataset import Request
    from mcd_cli.data.folder import listing

    images._num_threads = lambda: 16
    file = io.BytesIO()
    picture(0).resize((1, 1)).resize((6000, 6000)).save(file, "PNG")
    for name in ("a", "b"):
        (folder / "set" / name).mkdir(parents=True)
        for i in range(3):
            (folder / "set" / name / f"{i}.png").write_bytes(file.getvalue()[: None if i < 2 else -99])
    request = Request(folder / "set", 32, False, lambda line: None)
    list(images._chunks(listing(request), 32, request, []))


def huge_png_text(folder: Path) -> None:
    """A compressed text chunk of a gigabyte in a small PNG."""
    from mcd_cli.data import images

    file = io.BytesIO()
    picture(0).save(file, "PNG")
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**24)) for _ in range(GB // 2**24)) + packer.flush()
    data = b"zTXtx\0\0" + packed
    chunk = (len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
    content = file.getvalue()
    (folder / "x.png").write_bytes(content[:33] + chunk + content[33:])
    found = images._attempt(images.file_at(folder / "x.png", "x.png"), folder, 8, False)
    raise McdError(str(found))


def manifest(folder: Path) -> None:
    from mcd_cli.ladder.manifest import load_ladder

    with (folder / "ladder.json").open("wb") as file:
        file.truncate(4 * GB)
    load_ladder(folder)


def safetensors(folder: Path) -> None:
    from mcd_cli.models.teacher_file import load_teacher

    head = b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4000000000000]}}'
    (folder / "t.pt").write_bytes(len(head).to_bytes(8, "little") + head + bytes(100))
    load_teacher(folder / "t.pt")


def onnx(folder: Path) -> None:
    """Three nodes that ask for 40 GB, which onnxruntime would fold into a constant while it loads them."""
    import torch
    from onnx import TensorProto, helper

    from mcd_cli.models.teacher_file import load_teacher

    size = helper.make_tensor("s", TensorProto.INT64, [1], [10 * GB])
    nodes = [
        helper.make_node("Constant", [], ["s"], value=size),
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Add", ["f", "sum"], ["z"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("z", ["n", "c"]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "t.onnx").write_bytes(document.SerializeToString())
    load_teacher(folder / "t.onnx").model(torch.zeros(1, 3, 8, 8))


# name -> what reads it, and the words of the refusal
BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "tar header": (lambda folder: archive(folder, tarfile.XHDTYPE, GB), "claims an impossible size"),
    "tar name": (lambda folder: archive(folder, tarfile.GNUTYPE_LONGNAME, GB), "claims an impossible size"),
    "tar.gz": (lambda folder: archive(folder, tarfile.REGTYPE, GB), "unpacks to more than"),
    "zip": (zipped, "unpacks to more than"),
    "pickle memo": (lambda folder: memos(folder, b"\x80\x02K\x01r\xff\xff\xff\xff."), "does not contain a dict"),
    "pickle bytes": (lambda folder: memos(folder, b"\x80\x05\x96\0\0\0\0\x02\0\0\0."), "not a complete CIFAR batch"),
    "pickle lists": (lists, "is not a batch of CIFAR-10"),
    "images": (images, "2.png"),
    "text in an image": (huge_png_text, "Decompressed data too large"),
    "manifest": (manifest, "more than"),
    "safetensors": (safetensors, "damaged safetensors file"),
    "onnx": (onnx, "[ONNXRuntimeError]"),  # onnxruntime fails as it loads the file (before 1.28) or as it runs
}


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(BOMBS)
    for name in names:
        explode, _ = BOMBS[name]
        began = time.monotonic()
        (folder / name).mkdir()
        try:
            explode(folder / name)
            said = "nothing"
        except McdError as error:
            said = str(error)
        peak = _peak()
        print(f"{name}: peak {peak / 1e6:.0f} MB, {time.monotonic() - began:.1f} s: {said}")


def _peak() -> int:
    """Bytes. ru_maxrss would be that of whoever started this process, where that was larger."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
