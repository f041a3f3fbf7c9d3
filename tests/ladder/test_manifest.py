"""ladder.json: what is saved is loaded, what is wrong is refused in one line; choosing a student by its budget."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from safetensors.torch import save
from torch import nn

from mcd_cli.errors import NothingFits, UserError
from mcd_cli.ladder.budget import Budget, choose
from mcd_cli.ladder.documents import read
from mcd_cli.ladder.latency import hardware_key
from mcd_cli.ladder.manifest import Ladder, find_run, load_ladder
from mcd_cli.ladder.schema import ExportEntry, StudentEntry
from mcd_cli.ladder.variants import Variant
from mcd_cli.models import build
from support.manifests import GOLDEN
from support.runs import timing

few = settings(max_examples=80, derandomize=True, database=None, deadline=None)

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)


def student(name: str, macs: int, val: float, **more: Any) -> dict[str, Any]:
    entry = {
        "name": name,
        "arch": "resnet10-xxxs",
        "weights": f"students/{name}.safetensors",
        "sha256": "0" * 64,
        "params": macs // 50,
        "macs": macs,
        "bytes": macs // 12,
        "accuracy": {"ce": None, "last": val, "val": val, "test": val},
        "latency": {},
        "exports": {},
    }
    return entry | more


CALIBRATION = {
    "temperature": 2.5,
    "raw": {"val": {"nll": 1.5, "ece": 0.25}, "test": {"nll": 1.75, "ece": 0.5}},
    "scaled": {"val": {"nll": 0.5, "ece": 0.03125}, "test": {"nll": 0.625, "ece": 0.0625}},
}
EXPORTED = {"sha256": "1" * 64, "bytes": 9, "val": 0.5, "num_val": 8}


def document(*students: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A manifest written by hand, not by the code under test."""
    content: dict[str, Any] = {
        "schema": 1,
        "version": "0.1.0",
        "created": "2025-01-02T03:04:05+00:00",
        "dataset": {
            "name": "toy",
            "classes": ["a", "b", "c"],
            "input_shape": [3, 16, 16],
            "mean": list(MEAN),
            "std": list(STD),
            "split_seed": 0,
            "fingerprint": "f",
        },
        "teacher": {
            "arch": "resnet10-s",
            "sha256": "a" * 64,
            "norm": "half",
            "accuracy": {"val": 0.9, "test": 0.9},
        },
        "method": "mc-distil",
        "recipe_sha256": "b" * 64,
        "seed": 0,
        "device": "cpu",
        "students": list(students)
        or [student("m", 16_180_000, 0.7), student("s", 4_160_000, 0.6), student("xs", 2_860_000, 0.65)],
    }
    return content | more


def write(folder: Path, content: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ladder.json").write_text(json.dumps(content or document()))
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A run with one real student, and that student's network."""
    torch.manual_seed(3)
    network = build("resnet10-xxxs", 3)
    with torch.no_grad():  # a network that BatchNorm's first statistics do not describe
        network.train()(torch.rand(8, 3, 16, 16))
    network.eval()
    content = save(network.state_dict())
    entry = student("xs", 5000, 0.5, sha256=hashlib.sha256(content).hexdigest())
    run = write(tmp_path / "run", document(entry))
    (run / "students").mkdir()
    (run / "students" / "xs.safetensors").write_bytes(content)
    return run, network


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    ladder = load_ladder(write(tmp_path / "a"))
    assert [s.name for s in ladder.students] == ["m", "s", "xs"]
    assert ladder.students[0].accuracy.ce is None
    assert ladder.dataset.classes == ("a", "b", "c")
    (tmp_path / "b").mkdir()
    ladder.save(tmp_path / "b")
    again = load_ladder(tmp_path / "b")
    assert again == ladder
    again.save(tmp_path / "a")
    assert (tmp_path / "a/ladder.json").read_bytes() == (tmp_path / "b/ladder.json").read_bytes()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["ladder.json"]
    stored = json.loads((tmp_path / "b/ladder.json").read_text())
    assert stored.keys() >= document().keys()
    assert str(tmp_path) not in json.dumps(stored)
    first, given = stored["students"][0], document()["students"][0]
    assert first["accuracy"].items() >= given.pop("accuracy").items()
    assert first.items() >= given.items()


def test_students_are_ordered_by_falling_macs(tmp_path: Path) -> None:
    run = write(tmp_path, document(student("a", 10_000, 0.5), student("b", 30_000, 0.4)))
    assert [s.name for s in load_ladder(run).students] == ["b", "a"]


def test_keys_of_later_versions_are_left_out_and_optional_ones_may_lack(tmp_path: Path) -> None:
    entry = student("a", 10_000, 0.5, colour="red")
    del entry["latency"], entry["exports"]
    ladder = load_ladder(write(tmp_path, document(entry, teacher=None, weather="fine")))
    assert ladder.teacher is None
    assert (ladder.students[0].latency, ladder.students[0].exported) == ({}, {})


def test_calibration_is_kept_and_an_older_manifest_has_none(tmp_path: Path) -> None:
    exported = {"onnx": EXPORTED | {"calibrated": True}, "int8": EXPORTED}
    new, old = student("a", 9_000, 0.5, calibration=CALIBRATION, exported=exported), student("b", 8_000, 0.5)
    ladder = load_ladder(write(tmp_path, document(new, old)))
    first, second = ladder.students
    assert first.calibration is not None
    assert (first.calibration.temperature, first.calibration.scaled["test"].ece) == (2.5, 0.0625)
    assert first.exported["onnx"].calibrated
    assert (second.calibration, first.exported["int8"].calibrated) == (None, False)
    stored = ladder.document()["students"]
    assert stored[0]["calibration"] == CALIBRATION
    assert stored[0]["exported"]["onnx"]["calibrated"] is True
    assert "calibration" not in stored[1]  # as the mcd that wrote it wrote it
    assert stored[0]["exported"]["int8"].keys() == EXPORTED.keys() | {"gate"}
    ladder.save(tmp_path)
    assert load_ladder(tmp_path) == ladder


def test_a_file_does_not_say_where_it_lies(tmp_path: Path) -> None:
    entry = student("a", 10_000, 0.5, home=["/etc", document()["dataset"]])
    content = document(entry, folder="/etc")
    bare = read(TypeAdapter(Ladder), json.dumps(content))
    assert (bare.folder, bare.students[0].home) == (None, None)
    ladder = load_ladder(write(tmp_path, content))
    assert ladder.folder == tmp_path
    assert ladder.students[0].home == (tmp_path, ladder.dataset)


def _without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def _with(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_with(2, "schema"), "newer mcd .schema 2; this one reads 1.: upgrade"),
        (_with("1", "schema"), "has no schema version"),
        (_with(0, "schema"), "has no schema version"),
        (_with(True, "schema"), "has no schema version"),
        (_without("schema"), "has no schema version"),
        (_without("students"), "students: field required"),
        (_without("students", 1, "macs"), r"students\[1\].macs: field required"),
        (_without("students", 0, "accuracy", "val"), r"students\[0\].accuracy.val: field required"),
        (_without("dataset", "mean"), "dataset.mean: field required"),
        (_with([], "students"), "has no students"),
        (_with({"a": float("inf")}, "hardware"), "damaged"),
        (_with({}, "students"), "students: input should be a valid array"),
        (_with([1], "students"), r"students\[0\]: input should be an object, got 1"),
        (_with("16M", "students", 0, "macs"), r"students\[0\].macs: input should be a valid integer, got '16M'"),
        (_with(1.5, "students", 0, "macs"), "input should be a valid integer"),
        (_with(True, "students", 0, "macs"), "input should be a valid integer"),
        (_with(-1, "students", 0, "macs"), r"students\[0\]: .*above 0"),
        (_with(1.2, "students", 0, "accuracy", "val"), r"\[0\].accuracy: must lie in \[0, 1\]"),
        (_with(None, "students", 0, "accuracy", "val"), "accuracy.val: input should be a valid number, got None"),
        (_with(7, "students", 0, "name"), "name: input should be a valid string, got 7"),
        (_with("Big One", "students", 0, "name"), "name must be of a-z"),
        (_with("s", "students", 0, "name"), "two students have the same name"),
        (_with("a b", "students", 0, "arch"), "arch is not a valid architecture"),
        (_with("xyz", "students", 0, "sha256"), "64 hexadecimal"),
        (_with({"here": [timing(0)]}, "students", 0, "latency"), r"latency.here\[0\]: .*above 0"),
        (
            _with({"here": [timing("2ms")]}, "students", 0, "latency"),
            r"here\[0\].p50_ms: input should be a valid number",
        ),
        (_with({"here": {}}, "students", 0, "latency"), "latency.here: input should be a valid array"),
        (_with({"int8": {"sha256": "x"}}, "students", 0, "exported"), "exported.int8.bytes: field required"),
        (_with({"onnx": 3}, "students", 0, "exports"), r"exports.onnx: input should be a valid string"),
        (_with("/etc/passwd", "students", 0, "weights"), "leaves the run's folder"),
        (_with("../x", "students", 0, "weights"), "leaves the run's folder"),
        (_with("students/../../x", "students", 0, "weights"), "leaves the run's folder"),
        (_with("C:\\x", "students", 0, "weights"), "leaves the run's folder"),
        (_with("", "students", 0, "weights"), "leaves the run's folder"),
        (_with("a\0b", "students", 0, "weights"), "leaves the run's folder"),
        (_with({"onnx": "/x.onnx"}, "students", 0, "exports"), "leaves the run's folder"),
        (_with([0.5, 0.5], "dataset", "mean"), r"dataset.mean\[2\]: field required"),
        (_with([0.5, 0.5, 0], "dataset", "std"), "std must be above 0"),
        (_with([], "dataset", "classes"), "has no classes"),
        (_with([3, 0, 16], "dataset", "input_shape"), "input_shape must be above 0"),
        (_with("yesterday", "created"), "created is not an ISO 8601 time"),
        (_with(5, "created"), "created: input should be a valid string"),
        *[
            (_with(CALIBRATION | {"temperature": t}, "students", 0, "calibration"), why)
            for t, why in [
                (0, r"\[0\].calibration: temperature must lie in \[0.001, 1000\]"),
                (-1.5, "temperature must lie in"),
                (1e300, "temperature must lie in"),
                (None, "calibration.temperature: input should be a valid number"),
                ("2", "calibration.temperature: input should be a valid number"),
                (float("nan"), "damaged"),
            ]
        ],
        (_with(CALIBRATION | {"raw": {}}, "students", 0, "calibration"), "raw and scaled must have the scores on val"),
        (_with(CALIBRATION | {"raw": {"val": {"nll": -1, "ece": 0}}}, "students", 0, "calibration"), "nll must not be"),
        (_with(CALIBRATION | {"raw": {"val": {"nll": 1, "ece": 2}}}, "students", 0, "calibration"), "ece must lie in"),
        (
            _with({"onnx": EXPORTED | {"calibrated": 1}}, "students", 0, "exported"),
            "calibrated: input should be a valid b",
        ),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    content = document()
    change(content)
    with pytest.raises(UserError, match=why) as refused:
        load_ladder(write(tmp_path / "run", content))
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "run") in str(refused.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "damaged"),
        (json.dumps(document()).encode()[:-40], "damaged"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe{}", "damaged"),
        (b"[" * 100_000, "recursion limit exceeded"),
        (json.dumps(document()).replace("0.65", "NaN").encode(), "damaged"),
        (json.dumps(document()).replace("0.65", "Infinity").encode(), "damaged"),
        (json.dumps(document()).replace("0.65", "1e999").encode(), r"accuracy.last: input should be a finite number"),
        (json.dumps(document(hardware={"a": [0.375]})).replace("0.375", "1e999").encode(), "hardware: out of range"),
        (json.dumps(document()).replace("toy", "\\ud800").encode(), "damaged"),
        (json.dumps(document()).replace("2860000", "9" * 5000).encode(), "damaged"),
    ],
)
def test_a_torn_manifest_is_refused_in_one_line(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "ladder.json").write_bytes(text)
    with pytest.raises(UserError, match=why) as refused:
        load_ladder(tmp_path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (run / "students").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leaves the run's folder"):
        load_ladder(run)
    (run / "students").unlink()
    (run / "students").symlink_to(run / "kept")  # a link within is fine
    assert load_ladder(run).student("m").weights == "students/m.safetensors"
    (run / "students").unlink()
    (run / "students").symlink_to("students")
    with pytest.raises(UserError, match="leaves the run's folder"):
        load_ladder(run)


def test_the_newest_finished_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no finished run under {tmp_path}/runs"):
        find_run()
    write(tmp_path / "runs/old", document(created="2025-01-01T10:00:00+00:00"))
    write(tmp_path / "runs/zone", document(created="2025-01-02T09:00:00+09:00"))  # 00:00 UTC
    write(tmp_path / "runs/new", document(created="2025-01-02T01:00:00"))
    write(tmp_path / "elsewhere", document(created="2026-01-01T00:00:00Z"))
    (tmp_path / "runs/unfinished").mkdir()
    os.utime(tmp_path / "runs/old/ladder.json")  # the file's own time decides nothing
    assert find_run() == Path("runs/new")
    assert find_run("elsewhere") == Path("elsewhere")
    with pytest.raises(UserError, match="run folder nowhere does not exist"):
        find_run("nowhere")
    with pytest.raises(UserError, match=r"not a finished run .*resume"):
        find_run("runs/unfinished")
    (tmp_path / "runs/old/ladder.json").write_text("{")
    with pytest.raises(UserError, match=r"runs/old/ladder.json is damaged"):
        find_run()


def test_a_student_loads_as_the_function_it_was(trained: tuple[Path, nn.Module]) -> None:
    run, network = trained
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        expected = network(torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1))
    draws = torch.get_rng_state()
    loaded = load_ladder(str(run)).select(max_macs="16M").load()
    assert torch.equal(draws, torch.get_rng_state())
    assert not loaded.training
    with torch.no_grad():
        logits = loaded(images)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.01
    with torch.no_grad():
        assert torch.equal(load_ladder(run).load("xs")(images), logits)
    with pytest.raises(UserError, match="did you mean xs"):
        load_ladder(run).load("xxs")


def test_weights_that_are_not_the_manifests_are_refused(trained: tuple[Path, nn.Module]) -> None:
    run, _ = trained
    weights = run / "students/xs.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="sha256 differs"):
        load_ladder(run).load("xs")
    for arch, other, why in (
        ("resnet10-s", bytes(content), "do not fit resnet10-s with 3 classes"),
        ("resnet10-xxxs", b"junk", "do not fit resnet10-xxxs"),
        ("resnet10-y", b"junk", "unknown architecture"),
    ):
        weights.write_bytes(other)
        write(run, document(student("xs", 5000, 0.5, arch=arch, sha256=hashlib.sha256(other).hexdigest())))
        with pytest.raises(UserError, match=why) as refused:
            load_ladder(run).load("xs")
        assert "\n" not in str(refused.value)
    weights.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_ladder(run).load("xs")


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ({}, "m"),
        ({"max_macs": "16.18M"}, "m"),  # a limit that is met exactly is met
        ({"max_macs": 16_180_000}, "m"),
        ({"max_macs": "16M"}, "xs"),  # the more accurate one, not the larger one
        ({"max_macs": "16M", "min_accuracy": "65%"}, "xs"),
        ({"min_accuracy": 0.7}, "m"),
        ({"max_params": "100K"}, "xs"),
        ({"max_size": "300KB"}, "xs"),
        ({"max_latency": "2ms"}, "s"),
        ({"max_latency": 0.5}, "s"),
        ({"max_latency": "4ms"}, "m"),
        ({"max_latency": "4ms", "percentile": "p99"}, "s"),
    ],
)
def test_select(tmp_path: Path, budget: dict[str, Any], name: str) -> None:
    content = document()
    for entry, ms in zip(content["students"], (4.0, 0.5, 2.5), strict=True):
        # of other hardware, another batch, another variant: none of them is asked for
        other = [timing(0.1, batch=8), timing(0.1, format="int8")]
        entry["latency"] = {hardware_key(1): [*other, timing(ms)], hardware_key(2): [timing(0.1)]}
    assert load_ladder(write(tmp_path, content)).select(**budget).name == name


def test_ties_go_to_the_cheaper(tmp_path: Path) -> None:
    run = write(tmp_path, document(student("a", 30_000, 0.5), student("b", 20_000, 0.5), student("c", 9_000, 0.4)))
    ladder = load_ladder(run)
    assert ladder.select().name == "b"
    assert [c.on_front for c in ladder.explain(Budget()).candidates] == [False, True, True]


@pytest.mark.parametrize(
    ("bytes", "ms", "name"),
    [
        ((100, 90), (None, None), "a"),  # hardly smaller
        ((100, 70), (None, None), "a.int8"),
        ((100, 70), (1.0, 2.0), "a"),  # slower
        ((100, 90), (2.0, 1.0), "a.int8"),  # quicker
        ((100, 90), (None, 1.0), "a"),  # a latency that only one of them has decides nothing
    ],
)
@pytest.mark.parametrize("limits", [{}, {"min_accuracy": "40%"}])
def test_int8_wins_a_tie_only_if_it_is_quicker_or_much_smaller(
    tmp_path: Path, bytes: tuple[int, int], ms: tuple[float | None, ...], name: str, limits: dict[str, Any]
) -> None:
    (tmp_path / "exports").mkdir()
    entry = replace(_entry(), exports={})
    for format, size in zip(("onnx", "int8"), bytes, strict=True):
        (tmp_path / f"exports/{format}").write_bytes(b"x" * size)
        entry.exports[format] = f"exports/{format}"
    export = ExportEntry(sha256="0" * 64, bytes=bytes[1], val=0.5, num_val=10)
    entry = replace(entry, exported={"int8": export}).at(tmp_path, _ladder().dataset)
    both = [Variant(entry, format, latency_ms=t) for format, t in zip(("onnx", "int8"), ms, strict=True)]
    assert choose(both, Budget.parse(**limits)).demand().name == name


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"max_macs": "1M"}, "--max-macs 1M; the smallest comes nearest: xs needs 2.86M: 186 % over"),
        ({"max_macs": 10}, "xs needs 2.86M: 286,000 times the budget"),
        ({"max_params": "57.1K"}, "xs needs 57.2K parameters: 0.18 % over"),
        ({"max_params": 57199}, "xs needs 57,200 parameters: less than 0.01 % over"),
        ({"max_size": "100KB"}, "xs needs 238KB of weights: 138 % over"),
        (
            {"max_macs": "16M", "min_accuracy": "70%"},
            "--max-macs 16M --min-accuracy 70.0 %; nearest miss: m needs 16.2M: 1.1 % over; "
            "smallest: xs reaches 65.0 % on val: 5 points short",
        ),
        (
            {"max_macs": "2M", "min_accuracy": "66%"},
            "the smallest comes nearest: xs needs 2.86M: 43 % over and reaches 65.0 % on val: 1 points short",
        ),
    ],
)
def test_nothing_fits_names_the_nearest_miss(tmp_path: Path, budget: dict[str, Any], told: str) -> None:
    with pytest.raises(NothingFits) as nothing:
        load_ladder(write(tmp_path)).select(**budget)
    assert str(nothing.value).startswith("no student fits ")
    assert told in str(nothing.value)
    assert nothing.value.exit_code == 3


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ({"max_macs": "lots"}, "--max-macs: 'lots' is not a count"),
        ({"max_macs": "2ms"}, "--max-macs: .*unit"),
        ({"max_macs": 0}, "--max-macs 0: every student costs something"),
        ({"max_size": "0KB"}, "--max-size 0KB"),
        ({"max_macs": -5}, "--max-macs"),
        ({"min_accuracy": "72"}, "--min-accuracy: .*above 1"),
        ({"max_latency": "2ms"}, "m is not exported; write it: mcd export --run .* --student m"),
        ({"max_latency": "soon"}, "--max-latency: 'soon' is not a duration"),
        ({"percentile": "p90"}, "--percentile p90 needs a limit; add --max-latency"),
        ({"percentile": "p95", "max_latency": "2ms"}, "unknown percentile 'p95'"),
    ],
)
def test_budgets_that_are_none_are_refused(tmp_path: Path, budget: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        load_ladder(write(tmp_path)).select(**budget)


@few
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(0, 9),
)
def test_the_choice_against_every_possibility(
    costs: list[tuple[int, int]], max_macs: int | None, min_accuracy: int | None
) -> None:
    base = replace(_entry(), latency={})
    students = [
        replace(base, name=str(i), macs=macs, accuracy=replace(base.accuracy, val=tenths / 10))
        for i, (macs, tenths) in enumerate(costs)
    ]
    choice = choose(
        [Variant(student) for student in students],
        Budget.parse(max_macs=max_macs, min_accuracy=None if min_accuracy is None else min_accuracy / 10),
    )
    fits = [(t, m) for m, t in costs if m <= (max_macs or 9) and t >= (min_accuracy or 0)]
    assert [c.fits for c in choice.candidates].count(True) == len(fits)
    if fits:
        wanted = min((m, -t) for t, m in fits) if min_accuracy is not None else min((-t, m) for t, m in fits)
        chosen = choice.demand()
        assert choice.chosen is chosen
        costs_and_gain = (chosen.student.macs, -round(10 * chosen.val))
        assert (costs_and_gain if min_accuracy is not None else costs_and_gain[::-1]) == wanted
    else:
        assert choice.chosen is None
        with pytest.raises(NothingFits):
            choice.demand()
    assert (choice.nearest is None) == (len(fits) == len(costs))
    for candidate, (macs, tenths) in zip(choice.candidates, costs, strict=True):
        beaten = any((m <= macs and t > tenths) or (m < macs and t >= tenths) for m, t in costs)
        assert candidate.on_front == (not beaten)


def _ladder() -> Ladder:
    return read(TypeAdapter(Ladder), json.dumps(document(student("a", 5000, 0.5))))


def _entry() -> StudentEntry:
    return _ladder().students[0]


@few
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists, max_leaves=4), st.data())
def test_a_manifest_with_any_value_in_any_place_is_read_or_refused(value: Any, data: st.DataObject) -> None:
    content = document()
    place: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    with contextlib.suppress(ValueError):  # which load_ladder tells in one line; anything else would be a traceback
        read(TypeAdapter(Ladder), json.dumps(content))


def test_the_bytes_are_those_of_before(tmp_path: Path) -> None:
    """A manifest that mcd 0.1.0 wrote when it read and wrote them by hand."""
    ladder = load_ladder(GOLDEN)
    assert ladder.students[0].exported["int8"].gate["p50_ms"].keys() == {"onnx", "int8"}
    ladder.save(tmp_path)
    assert (tmp_path / "ladder.json").read_bytes() == (GOLDEN / "ladder.json").read_bytes()
