"""Hostile weights: teacher files of every kind, student files, checkpoints."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save as safetensors

from mcd_cli.engine.checkpoint import Checkpoints, checked_position, state_of_another
from mcd_cli.errors import UserError
from mcd_cli.models import build
from mcd_cli.models.student_file import load_student
from mcd_cli.models.teacher_file import load_teacher
from support.hostile import (
    NASTY_NUMBERS,
    NASTY_TEXT,
    Evil,
    edited,
    edits,
    fuzz,
    promise,
    texts,
    tree_edits,
    with_tree_edits,
    workplace,
)

ARCH, CLASSES = "resnet10-xxxs", 7
ABOUT = {"arch": ARCH, "num_classes": CLASSES, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": list("abcdefg")}


@cache
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build(ARCH, CLASSES).state_dict())


def saved(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@cache
def teacher_bytes(kind: str) -> bytes:
    if kind == "safetensors":
        return safetensors(state(), metadata={"mcd": json.dumps(ABOUT)})
    if kind == "onnx":
        return graph()
    return saved({"model": state(), "epoch": 3, "optimizer": {"lr": 0.1}}, legacy=kind == "legacy")


def graph(shape: Any = ("n", 3, 8, 8), nodes: Any = (), out: Any = ("n", CLASSES)) -> bytes:
    """Pool, flatten, linear; with nodes of others on the way from `f` to `g`."""
    weight = numpy_helper.from_array(torch.rand(3, CLASSES).numpy(), "w")
    chain = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        *(nodes or [helper.make_node("Identity", ["f"], ["g"])]),
        helper.make_node("Gemm", ["g", "w"], ["z"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("z", out))]
    made = helper.make_graph(chain, "g", ends[:1], ends[1:], [weight])
    document = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(document.SerializeToString())


def load(folder: Path, content: bytes, **asked: Any) -> None:
    path = folder / "t.pt"
    path.write_bytes(content)
    found = load_teacher(path, **asked)
    if 0 < found.num_classes < 1000:
        with torch.no_grad():
            assert found.model(torch.zeros(1, 3, 8, 8)).shape == (1, found.num_classes)


def attempt(reader: str, content: bytes, **asked: Any) -> None:
    with workplace() as folder:
        promise(reader, lambda: load(folder, content, **asked), folder)
        assert [path.name for path in folder.iterdir()] == ["t.pt"]


@fuzz(40)
@given(st.sampled_from(["zip", "legacy", "safetensors", "onnx"]), edits)
def test_teacher_bytes(kind: str, changes: Any) -> None:
    attempt(f"teacher, {kind}", edited(teacher_bytes(kind), changes, head=4000))


def repacked(whole: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """A torch archive whose parts are changed and whose checksums are right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as good, zipfile.ZipFile(out, "w") as archive:
        for name in good.namelist():
            archive.writestr(name, change(name, good.read(name)))
    return out.getvalue()


@fuzz(40)
@given(
    edits, st.sampled_from(["data.pkl", "data.pkl", "data.pkl", "byteorder", "version", "data/0", ".format_version"])
)
def test_teacher_pickle(changes: Any, part: str) -> None:
    whole = teacher_bytes("zip")
    content = repacked(whole, lambda name, old: edited(old, changes) if name.endswith(part) else old)
    attempt("teacher, pickle in zip", content)


CODES = [code for code in map(pickle.__dict__.get, dir(pickle)) if isinstance(code, bytes) and len(code) == 1]
PIECES = [
    b"cos\nmkdir\n", b"c__builtin__\nexec\n", b"cnumpy\ndtype\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"X\x08\x00\x00\x00executed", b"K\x01", b"}", b"(",
    b"\x94", b"r\xff\xff\xff\xff", b"\x8e" + b"\xff" * 7 + b"\x00", b"\x96" + b"\xff" * 5 + b"\x00" * 3,
]  # fmt: skip
opcodes = st.lists(
    st.sampled_from(CODES) | st.sampled_from(PIECES) | st.binary(max_size=4),
    max_size=12,
).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")


@fuzz(40)
@given(opcodes)
@example(pickle.dumps(Evil(), protocol=2))
def test_teacher_pickle_programs(program: bytes) -> None:
    whole = teacher_bytes("zip")
    attempt("teacher, pickle programs", repacked(whole, lambda n, old: program if n.endswith("data.pkl") else old))


DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


@st.composite
def tensors(draw: Any) -> Any:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7]), max_size=4))
    kind = draw(
        st.sampled_from(
            ["plain", "plain", "giant", "meta", "sparse", "csr", "quantised", "nested", "grad", "strided", "evil"]
        )
    )
    tensor = torch.zeros(shape, dtype=draw(st.sampled_from(DTYPES)))
    if kind == "giant":
        return torch.zeros(1).expand(*[draw(st.sampled_from([1, 7, 2**20, 2**31])) for _ in range(2)])
    if kind == "meta":
        return torch.zeros(shape, device="meta")
    if kind == "sparse":
        return torch.zeros(3, 3).to_sparse()
    if kind == "csr":
        return torch.eye(3).to_sparse_csr()
    if kind == "quantised":
        return torch.quantize_per_tensor(torch.zeros(3, 3), 0.1, 0, torch.qint8)
    if kind == "nested":
        return torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])
    if kind == "grad":
        return torch.nn.Parameter(
            torch.full((7, 4), float(draw(st.sampled_from(NASTY_NUMBERS[14:]))), dtype=torch.float64)
        )
    if kind == "strided":
        return torch.zeros(64).as_strided((7, 4), (1, 0))
    return Evil() if kind == "evil" else tensor


NAMES = ["fc.weight", "fc.bias", "conv1.weight", "bn1.running_var", "state_dict", "model", "module", "net", "ema"]
LONG_NAMES = ["module." * 3000 + "x", "a." * 3000 + "x", *NAMES, *NASTY_TEXT]


def name_at(index: int) -> str:
    return LONG_NAMES[index]


names = st.integers(0, len(LONG_NAMES) - 1).map(name_at)  # sampled_from would print each of them
contents = st.recursive(
    st.one_of(tensors(), texts, st.sampled_from(NASTY_NUMBERS[:14]), st.none()),
    lambda inner: st.dictionaries(names, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@fuzz(30)
@given(st.dictionaries(names, contents, max_size=4), st.booleans(), st.booleans(), st.booleans())
def test_teacher_contents(changes: dict[str, Any], inside: bool, legacy: bool, looped: bool) -> None:
    """Anything that torch.save writes: a network's tensors replaced, wrapped, and beside other things."""
    content: dict[str, Any] = {**state(), **changes} if inside else {"model": dict(state()), **changes}
    if looped:
        content["again"] = [content, {"self": content}]
        content["itself"] = content
    try:
        written = saved(content, legacy)
    except Exception:  # torch cannot save it either (sparse tensors in the old format)
        written = saved({"x": Evil()}, legacy)
    attempt("teacher, contents", written, arch=ARCH if looped else None)


HEADER: dict[str, Any] = {
    "__metadata__": {"mcd": json.dumps(ABOUT)},
    "fc.weight": {"dtype": "F32", "shape": [7, 4], "data_offsets": [0, 112]},
    "fc.bias": {"dtype": "F32", "shape": [7], "data_offsets": [112, 140]},
}


@fuzz(40)
@given(tree_edits, st.sampled_from([None, 0, 2**20, 2**40, 2**63]), st.integers(0, 200))
def test_teacher_safetensors_headers(changes: Any, length: int | None, num_bytes: int) -> None:
    header = json.dumps(with_tree_edits(json.loads(json.dumps(HEADER)), changes)).encode()
    size = len(header) if length is None else length
    attempt("teacher, safetensors", struct.pack("<Q", size) + header + bytes(num_bytes))


@fuzz(40)
@given(tree_edits, st.sampled_from([None, "[" * 5000, "null", "[]"]))
def test_teacher_metadata(changes: Any, text: str | None) -> None:
    about = json.dumps(with_tree_edits(json.loads(json.dumps(ABOUT)), changes)) if text is None else text
    content = safetensors(state(), metadata={"mcd": about.encode("utf-8", "replace").decode()})
    attempt("teacher, metadata", content)


sides = st.sampled_from(["n", 0, 1, 3, 8, -1, 2**20, 2**31, 2**62])


@fuzz(40)
@given(
    st.lists(sides, max_size=5),
    st.lists(sides, max_size=3),
    st.sampled_from(sorted(onnx.defs.get_all_schemas(), key=lambda s: s.name)),
)
def test_teacher_onnx(shape: Any, out: Any, schema: Any) -> None:
    shape = shape if len(shape) != 4 else [shape[0], 3, *shape[2:]]
    node = helper.make_node(schema.name, ["f"] * max(1, schema.min_input), ["g"])
    attempt("teacher, onnx graphs", graph(shape or ["n", 3, 8, 8], [node] if len(shape) % 2 else (), out or ("n", "c")))


@fuzz(40)
@given(edits, st.sampled_from(["bytes", "header", "other"]))
def test_student_files(changes: Any, kind: str) -> None:
    """With the right sha256: whoever sends weights sends the manifest, too."""
    content = safetensors(state())
    if kind == "bytes":
        content = edited(content, changes, head=4000)
    if kind == "other":
        content = safetensors({name: torch.zeros(3) for name in list(state())[: len(changes)]})
    with workplace() as folder:
        (folder / "s.safetensors").write_bytes(content)
        about = {"sha256": hashlib.sha256(content).hexdigest(), "arch": ARCH, "num_classes": CLASSES}
        promise(
            "student files",
            lambda: load_student(folder / "s.safetensors", mean=[0.5] * 3, std=[0.5] * 3, **about),  # type: ignore[arg-type]
            folder,
        )


POSITION = {
    "identity": {"recipe": "x", "data set": "y", "stages": ["distill"], "teacher": None},
    "hardware": {"device": "cpu"}, "stage": 0, "kept": ["warm-start-" + "0" * 64 + ".safetensors"], "metrics": 12,
    "trainer": {"number": 3, "updates": 1, "epochs_done": 1, "best": {"m": 3}},
}  # fmt: skip


@fuzz(40)
@given(edits, tree_edits, st.booleans(), texts)
def test_checkpoints(changes: Any, of_position: Any, is_whole: bool, kept: str) -> None:
    """A state whose name holds the hash of what was made of it, and one that is torn."""
    position = json.dumps(with_tree_edits(json.loads(json.dumps(POSITION)), of_position), ensure_ascii=True)
    content = safetensors({"students:a": torch.zeros(3)}, metadata={"position": position})
    content = content if is_whole else edited(content, changes, head=400)
    with workplace() as folder:
        (folder / "checkpoint").mkdir()
        name = f"state-000000001-{hashlib.sha256(content).hexdigest()}.safetensors"
        (folder / "checkpoint" / name).write_bytes(content)
        checkpoints = Checkpoints(folder / "checkpoint")

        def read() -> None:
            state = checkpoints.load(lambda line: None)
            assert state is not None
            with state_of_another():
                checked_position(state.position["trainer"])
            checkpoints.load_stage(kept)

        promise("checkpoints", read, folder)


# --- what the fuzzing found, one by one


def refused(path: Path, match: str, **asked: Any) -> None:
    with pytest.raises(UserError, match=match):
        load_teacher(path, **asked)


def test_a_teacher_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.pt")
    refused(tmp_path / "t.pt", "not a regular file")


def test_a_dictionary_that_holds_itself_and_shares_without_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": state()}
    content["itself"] = content
    shared: dict[str, Any] = {}
    for _ in range(40):  # 2^40 ways down
        shared = {"a": shared, "b": shared}
    torch.save(content | {"shared": shared}, tmp_path / "t.pt")
    assert load_teacher(tmp_path / "t.pt").arch == ARCH


@pytest.mark.parametrize("name", ["module." * 100_000 + "w", "a." * 2000 + "w", "x" * 5000])
def test_names_of_no_network(tmp_path: Path, name: str) -> None:
    torch.save({name: torch.zeros(3, 3)}, tmp_path / "t.pt")
    refused(tmp_path / "t.pt", "has tensor names that no network has")


def test_a_scalar_or_an_empty_head_is_no_classifier(tmp_path: Path) -> None:
    for changes in ({"fc.bias": torch.tensor(1.0)}, {"fc.weight": torch.zeros(0, 32), "fc.bias": torch.zeros(0)}):
        torch.save(state() | changes, tmp_path / "t.pt")
        refused(tmp_path / "t.pt", "fits no known architecture")
    torch.save(
        {(k + "9" * 900 if i == 3 else k): v for i, (k, v) in enumerate(state().items())}, tmp_path / "t.pt"
    )  # digits of a name are read as its number
    refused(tmp_path / "t.pt", "fits no known architecture")


def test_tensors_without_memory(tmp_path: Path) -> None:
    torch.save(state() | {"fc.bias": torch.zeros(7, device="meta")}, tmp_path / "t.pt")
    refused(tmp_path / "t.pt", "larger than the file")


@pytest.mark.parametrize("about", [{"mean": [0.5]}, {"std": [0.0, 1, 1]}, {"mean": [1e300] * 3}, {"mean": 5}])
def test_a_normalisation_that_is_none(tmp_path: Path, about: dict[str, Any]) -> None:
    (tmp_path / "t.pt").write_bytes(safetensors(state(), metadata={"mcd": json.dumps(ABOUT | about)}))
    refused(tmp_path / "t.pt", "damaged metadata")


def test_an_onnx_program_that_never_ends(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["a"], ["b"])],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))]
        + [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    (tmp_path / "t.onnx").write_bytes(graph(nodes=[helper.make_node("Loop", ["", "", "f"], ["g"], body=body)]))
    refused(tmp_path / "t.onnx", "it contains a Loop")
    (tmp_path / "t.onnx").write_bytes(graph(shape=(2**31, 3, 2**20, 8), out=("n", "c")))
    refused(tmp_path / "t.onnx", "must be between 1 and")


def test_weights_of_another_place(tmp_path: Path) -> None:
    document = onnx.load_from_string(graph())
    (tmp_path / "secret").write_bytes(random.Random(0).randbytes(84))
    onnx.external_data_helper.set_external_data(document.graph.initializer[0], "../secret", 0, 84)
    document.graph.initializer[0].ClearField("raw_data")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/t.onnx").write_bytes(document.SerializeToString())
    refused(tmp_path / "here/t.onnx", "outside of its folder")
