"""Whole comparisons on real digits: shared stages are bit-identical, a stop is resumed, mixed settings are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch import nn

from mcd_cli.comparison.figures import cohorts, draw, gains_over_closest
from mcd_cli.comparison.paper import PaperFigures, blocks, papers_figures
from mcd_cli.comparison.plan import Plan
from mcd_cli.comparison.runner import Comparison
from mcd_cli.comparison.schema import Document
from mcd_cli.comparison.tables import markdown
from mcd_cli.engine.events import Event, StageStarted
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.errors import Interrupted, UserError
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.models import build
from mcd_cli.recipe.overlays import Contender, find_contenders
from mcd_cli.recipe.schema import Recipe
from support.commands import mcd
from support.manifests import GOLDEN
from support.runs import signal_at, teachers_passes, tiny_recipe, train


def make(plan: Plan, folder: Path, emit: Callable[[Event], None] = lambda event: None) -> Comparison:
    options = RunOptions(device="cpu", threads=1)

    def engine(recipe: Recipe, run_folder: RunFolder) -> Run:
        return Run(recipe, run_folder, options, emit)

    folder.mkdir(exist_ok=True)
    plan.save(folder)
    return Comparison(plan, folder, engine, emit)


def plan_of(*methods: str, seeds: tuple[int, ...] = (0, 1), **changes: object) -> Plan:
    return Plan(tiny_recipe(**changes), tuple(one for name in methods for one in find_contenders(name)), seeds)


def weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "students").iterdir())}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No teacher of other tests is in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def whole(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ce, kd, mc-distil and a second kd on two seeds; `stages.json`: what was trained."""
    folder = tmp_path_factory.mktemp("comparison") / "whole"
    plan = plan_of("ce", "kd", "mc-distil")
    again = Contender("kd-again", {"method": "kd", "coordinator": {"every": 9}})
    stages: list[str] = []
    comparison = make(
        Plan(plan.base, (*plan.contenders, again), plan.seeds),
        folder,
        lambda event: stages.append(event.stage) if isinstance(event, StageStarted) else None,
    )
    comparison.train()
    comparison.document([], None)
    (folder / "stages.json").write_text(json.dumps(stages))
    return folder


def test_what_is_shared_is_trained_once(whole: Path) -> None:
    """One teacher, a warm start per seed, six cells: the second kd is the first one by definition."""
    stages = json.loads((whole / "stages.json").read_text())
    assert sorted(set(stages)) == ["distill", "teacher", "warm-start"]
    assert [stages.count(name) for name in ("teacher", "warm-start", "distill")] == [1, 2, 6]
    assert len(list((whole / "cells").iterdir())) == 6
    document = json.loads((whole / "comparison.json").read_text())
    assert {row["name"]: row["same_as"] for row in document["contenders"]}["kd-again"] == "kd"
    teachers = {load_ladder(cell).teacher for cell in (whole / "cells").iterdir()}
    assert len(teachers) == 1
    (teacher,) = teachers
    assert teacher is not None
    assert teacher.saw_val is False  # though the cells have it as a file


def test_sharing_changes_nothing(whole: Path, tmp_path: Path) -> None:
    """A cell's students are, to the bit, those of an ordinary run of its recipe that trains all by itself."""
    recipe = tiny_recipe(
        method="mc-distil",
        seed=1,
        teacher={"file": str(whole / "shared" / "teacher.safetensors"), "arch": "resnet10-xs"},
    )
    train(recipe, tmp_path / "alone")
    cell = whole / "cells" / "mc-distil-seed1"
    assert weights(cell) == weights(tmp_path / "alone")
    assert (cell / "predictions.safetensors").read_bytes() == (
        tmp_path / "alone" / "predictions.safetensors"
    ).read_bytes()
    assert load_ladder(cell).recipe_sha256 == load_ladder(tmp_path / "alone").recipe_sha256


def test_figures_are_those_of_the_predictions(whole: Path) -> None:
    """Mean, std, gain and its difference, from the stored predictions by another way."""
    document = json.loads((whole / "comparison.json").read_text())
    rows = {row["name"]: row for row in document["contenders"]}
    right = {}
    for method in ("ce", "kd", "mc-distil"):
        cells = [load_file(whole / "cells" / f"{method}-seed{seed}" / "predictions.safetensors") for seed in (0, 1)]
        right[method] = np.array(
            [[np.mean(c[f"test/last/{s}"] == c["test"]) for s in ("resnet10-xxs", "resnet10-xxxs")] for c in cells]
        )
        assert rows[method]["mean"]["mean"] == pytest.approx(right[method].mean())
        assert rows[method]["mean"]["std"] == pytest.approx(right[method].mean(axis=1).std(ddof=1))
        last = rows[method]["students"]["resnet10-xxxs"]["last"]
        assert last["values"] == pytest.approx(right[method][:, 1])
    for base, key in (("kd", "vs_kd"), ("ce", "vs_ce")):
        gain = right["mc-distil"].mean() - right[base].mean()
        assert rows["mc-distil"][key]["difference"] == pytest.approx(gain, abs=1e-6)
    assert rows["kd"]["vs_kd"] is None
    assert rows["kd"]["total_weight"] == pytest.approx(1)
    assert rows["mc-distil"]["total_weight"] == pytest.approx(1.5, abs=0.1)
    assert (rows["mc-distil"]["updates"], rows["kd"]["updates"]) == (4, 0)
    assert rows["mc-distil"]["seconds"]["mean"] > 0
    assert "C-NET made 4 updates" in document["verdicts"][0]["lines"][-1]
    assert gains_over_closest(Document.load(whole)).keys() == {"resnet10-xxs", "resnet10-xxxs"}
    told = (whole / "comparison.md").read_text(encoding="utf-8")
    best = max(rows.values(), key=lambda row: row["mean"]["mean"])["mean"]
    assert f"**{100 * best['mean']:.2f} ± {100 * best['std']:.2f}**" in told
    assert "kd-again is kd by definition" in told
    assert (whole / "gains.svg").is_file()


@pytest.mark.parametrize("folder", ["whole", "golden"])
def test_a_document_is_read_as_it_was_written(whole: Path, tmp_path: Path, folder: str) -> None:
    """To the byte; one that mcd 0.1.0 wrote from dictionaries, too."""
    written = whole if folder == "whole" else GOLDEN
    Document.load(written).save(tmp_path)
    assert (tmp_path / "comparison.json").read_bytes() == (written / "comparison.json").read_bytes()


def test_nll_and_ece_are_those_of_the_cells(whole: Path) -> None:
    document = json.loads((whole / "comparison.json").read_text())
    (kd,) = [row for row in document["contenders"] if row["name"] == "kd"]
    scores = [
        {s["name"]: s["calibration"] for s in json.loads((whole / cell / "ladder.json").read_text())["students"]}
        for cell in kd["cells"]
    ]
    for name, student in kd["students"].items():
        found = student["probabilities"]
        for key, kind, score in (("nll", "scaled", "nll"), ("raw_nll", "raw", "nll"), ("ece", "scaled", "ece")):
            assert found[key]["values"] == [cell[name][kind]["test"][score] for cell in scores]
        assert found["nll"]["mean"] == pytest.approx(sum(found["nll"]["values"]) / 2)


def test_a_damaged_document_is_told_in_one_line(tmp_path: Path) -> None:
    content = json.loads((GOLDEN / "comparison.json").read_text())
    damaged = [b"", b"[]", b"{", b"[" * 100_000, b'{"schema": NaN}']
    damaged += [json.dumps(content | more).encode() for more in ({"seeds": [True]}, {"recipe": {"epochs": 1e999}})]
    for text in damaged:
        (tmp_path / "comparison.json").write_bytes(text)
        with pytest.raises(UserError, match=r"contains no finished comparison \(comparison.json: ") as refused:
            Document.load(tmp_path)
        assert "\n" not in str(refused.value)
    older = {key: content[key] for key in content if key not in ("controls", "verdicts", "paper")}
    (tmp_path / "comparison.json").write_text(json.dumps(older | {"verdict": {}}))
    assert "kd and mc-distil" in markdown(Document.load(tmp_path), [])


@pytest.mark.parametrize(("stage", "step"), [("warm-start", 2), ("distill", 3)])
def test_interrupted_anywhere_it_ends_the_same(whole: Path, tmp_path: Path, stage: str, step: int) -> None:
    plan = plan_of("mc-distil", seeds=(0,))
    with pytest.raises(Interrupted):
        make(plan, tmp_path / "cut", signal_at(stage, step)).train()
    steps: list[int] = []
    again = make(
        plan, tmp_path / "cut", lambda event: steps.append(event.step) if isinstance(event, StageStarted) else None
    )
    again.train()
    assert steps[0] == step  # the interrupted stage went on in its midst
    assert not again.to_train
    cells = [folder / "cells" / "mc-distil-seed0" for folder in (whole, tmp_path / "cut")]
    assert weights(cells[0]) == weights(cells[1])
    again.document([], None)


def test_finished_cells_are_kept_and_new_seeds_are_added(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "more")
    comparison = make(plan_of("kd", "mc-distil", seeds=(1, 2)), tmp_path / "more")
    assert [cell.name for cell in comparison.to_train] == ["kd-seed2", "mc-distil-seed2"]


def test_a_chain_takes_its_first_link_over_from_kd(tmp_path: Path) -> None:
    """takd's largest student is kd's, to the bit what takd would have trained."""
    plan = plan_of("takd", "kd", seeds=(0,))
    stages: list[str] = []
    comparison = make(
        plan,
        tmp_path / "both",
        lambda event: stages.append(event.stage) if isinstance(event, StageStarted) else None,
    )
    comparison.train()
    assert stages[-2:] == ["distill", "distill/resnet10-xxxs"]
    alone = make(plan_of("takd", seeds=(0,)), tmp_path / "alone")
    alone.train()
    cells = [tmp_path / name / "cells" / "takd-seed0" for name in ("both", "alone")]
    assert weights(cells[0]) == weights(cells[1])
    rows = {row.name: row for row in comparison.document([], None).contenders}
    assert rows["takd"].borrowed == ("resnet10-xxs",)
    assert rows["takd"].students["resnet10-xxs"].total_weight == pytest.approx(1)
    assert rows["takd"].students["resnet10-xxs"].last == rows["kd"].students["resnet10-xxs"].last


def test_eight_methods_run_the_teacher_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds, one stored view: as many images as there are to train on, whatever method or seed asks first."""
    methods = ("ce", "kd", "takd", "dgkd", "rmc", "meta-distil", "mc-distil-nops", "mc-distil")
    plan = plan_of(*methods, epochs=1, teacher={"views": 1}, augment={"seed": 5})
    num_weights = sum(p.numel() for p in build(plan.base.teacher.arch, 10).parameters())

    def is_the_teacher(network: nn.Module) -> bool:  # not a larger student that teaches
        return sum(p.numel() for p in network.parameters()) == num_weights

    seen = teachers_passes(monkeypatch, is_the_teacher)
    comparison = make(plan, tmp_path)
    comparison.train()
    sizes = load_ladder(next(tmp_path.glob("*/*/ladder.json")).parent).dataset.sizes
    assert sum(seen) == sizes["train"]


def test_the_papers_figures_stand_below_ours(whole: Path) -> None:
    document = Document.load(whole)
    students = {"resnet10-xxs": {"kd": 33.45, "mc-distil": 37.27}}
    paper = PaperFigures(table=1, teacher_accuracy=72.2, students=students)
    told = markdown(replace(document, paper=paper), [])
    lines = told.splitlines()
    (kd,) = (i for i, line in enumerate(lines) if line.startswith("| kd ") and "paper" in lines[i + 1])
    assert lines[kd + 1] == "|   paper | 33.45 | - | - |"
    assert "paper: its Table 1" in told
    assert "paper" not in markdown(document, [])


def copied(whole: Path, to: Path) -> Comparison:
    shutil.copytree(whole, to)
    return make(plan_of("ce", "kd"), to)


def changed(path: Path, *keys: str, value: object) -> None:
    document = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))


def test_what_does_not_belong_is_refused_not_averaged(whole: Path, tmp_path: Path) -> None:
    kd = Path("cells") / "kd-seed1"
    for i, (keys, value, message) in enumerate(
        [
            (("dataset", "fingerprint"), "another", "differ in their data"),
            (("dataset", "split_seed"), 9, "differ in their split seed"),
            (("teacher", "sha256"), "0" * 64, "differ in their teacher"),
            (("recipe_sha256",), "0" * 64, "made with a different recipe"),
        ]
    ):
        comparison = copied(whole, tmp_path / str(i))
        changed(tmp_path / str(i) / kd / "ladder.json", *keys, value=value)
        with pytest.raises(UserError, match=message):
            comparison.document([], None)


def test_other_test_images_and_another_recipe_are_refused(whole: Path, tmp_path: Path) -> None:
    comparison = copied(whole, tmp_path / "images")
    path = tmp_path / "images" / "cells" / "kd-seed1" / "predictions.safetensors"
    predicted = load_file(path)
    predicted["test"] = predicted["test"][::-1].copy()
    save_file(predicted, path)
    with pytest.raises(UserError, match="differ in their test images"):
        comparison.document([], None)
    shutil.copytree(whole, tmp_path / "swapped")
    cells = tmp_path / "swapped" / "cells"
    shutil.rmtree(cells / "kd-seed0")
    shutil.copytree(cells / "ce-seed0", cells / "kd-seed0")
    with pytest.raises(UserError, match=r"kd-seed0 was made with a different recipe \(method\)"):
        make(plan_of("kd"), tmp_path / "swapped").document([], None)
    with pytest.raises(UserError, match=r"kd-seed0 was made with a different recipe \(method\)"):
        make(plan_of("kd", "rmc"), tmp_path / "swapped").train()
    assert not list(cells.glob("rmc-*"))  # found before anything is trained


def test_students_one_at_a_time(whole: Path, tmp_path: Path) -> None:
    """Figure 2: contenders with fewer students form the chains; a gain over kd is over the students of both."""
    shutil.copytree(whole, tmp_path / "grown")
    plan = plan_of("kd", "mc-distil")
    fewer = Contender("grow-1", {"students": ["resnet10-xxxs"]})
    comparison = make(Plan(plan.base, (*plan.contenders, fewer), plan.seeds), tmp_path / "grown")
    assert [cell.name for cell in comparison.to_train] == ["grow-1-seed0", "grow-1-seed1"]
    comparison.train()  # the warm start is there
    document = comparison.document([], None)
    chains = cohorts(document)
    assert {name: [count for count, _ in chain] for name, chain in chains.items()} == {"larger students added": [1, 2]}
    assert "cohorts.png" in draw([document], tmp_path)
    assert (tmp_path / "cohorts.png").stat().st_size > 5000
    rows = {row.name: row for row in document.contenders}
    own, kd = (rows[name].students["resnet10-xxxs"].last.mean for name in ("grow-1", "kd"))
    gain = rows["grow-1"].vs_kd
    assert gain is not None
    assert gain.difference == pytest.approx(own - kd, abs=1e-6)


def test_a_given_teacher_and_no_warm_start(whole: Path, tmp_path: Path) -> None:
    """Nothing is trained beforehand then; a student taken over from nobody starts at random, the same for all."""
    teacher = {"file": str(whole / "shared" / "teacher.safetensors"), "arch": "resnet10-xs"}
    stages: list[str] = []
    comparison = make(
        plan_of("ce", "kd", seeds=(0,), teacher=teacher, warm_start={"epochs": 0}),
        tmp_path / "bare",
        lambda event: stages.append(event.stage) if isinstance(event, StageStarted) else None,
    )
    comparison.train()
    document = comparison.document([], None)
    assert stages == ["distill", "distill"]
    assert document.warm_start == {}
    assert "CE (warm start)" not in markdown(document, [])
    gain = document.contenders[1].vs_ce
    assert gain is not None
    assert gain.num_seeds == 1


def test_a_group_is_chosen_on_v(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "tuned")
    group = tuple(
        Contender(f"tuned/{name}", {"method": "kd", "optimizer": {"lr": lr}}, group="tuned")
        for name, lr in (("a", 1e-6), ("b", 0.05))
    )
    comparison = make(Plan(tiny_recipe(), (*plan_of("ce").contenders, *group), (0,)), tmp_path / "tuned")
    comparison.train()
    document = comparison.document([], None)
    assert [row.name for row in document.contenders] == ["ce", "tuned"]
    on_val = document.tuned["tuned"].val
    assert document.tuned["tuned"].chosen == max(on_val, key=lambda name: on_val[name])
    for name, value in on_val.items():
        ladder = load_ladder(tmp_path / "tuned" / "cells" / f"{name.replace('/', '.')}-seed0")
        assert value == pytest.approx(np.mean([student.accuracy.val for student in ladder.students]))


def test_papers_figures_are_the_papers() -> None:
    """Held against what the paper's text says of its tables (§4.3, A.2, B.1)."""
    found = {(b["table"], b["dataset"], b["teacher"]): b["students"] for b in blocks()}
    assert len(found) == 13
    assert [len(students) for students in found.values()] == [4] * 13
    tiny = [students["resnet10-s"] for (t, d, _), students in found.items() if t == 1 and d == "tinyimagenet"]
    assert (tiny[0]["kd"], tiny[-1]["kd"], tiny[0]["mc-distil"]) == (25.95, 27.05, 28.24)
    for dataset in ("cifar100", "tinyimagenet"):  # CE needs no teacher: one column in all blocks
        ce = [{s: f["ce"] for s, f in st.items()} for (t, d, _), st in found.items() if t == 1 and d == dataset]
        assert all(one == ce[0] for one in ce)
    gains = [f["mc-distil"] - f["kd"] for (t, *_), st in found.items() if t == 1 for f in st.values()]
    assert min(gains) > 0
    assert max(gains) == pytest.approx(4, abs=0.1)  # "up to 4%"
    beaten = [
        max((f[m], m) for m in f)[1] != "mc-distil" for (t, *_), st in found.items() if t != 4 for f in st.values()
    ]
    assert sum(beaten) == 1  # ShuffleNet-V2 under WideResNet-40x2, bold under Meta-Distil
    assert all(f["mc-distil"] > f["mc-distil-nops"] for (t, *_), st in found.items() if t == 4 for f in st.values())


def test_papers_figures_stand_only_beside_its_settings() -> None:
    recipe = tiny_recipe(dataset="cifar100", teacher={"arch": "resnet10-l"}, students=["resnet10-m", "resnet10-xxxs"])
    found = papers_figures(recipe)
    assert found is not None
    assert found.students["resnet10-m"]["mc-distil"] == 69.13
    assert found.students["resnet10-m"]["mc-distil-nops"] == 68.47
    assert "resnet10-xxxs" not in found.students
    assert papers_figures(tiny_recipe()) is None
    assert (
        papers_figures(tiny_recipe(dataset="cifar100", teacher={"arch": "resnet10-l"}, students=["wrn-16-2"])) is None
    )


def test_the_command_prints_a_finished_comparison(
    whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, place / "done")
    assert mcd(monkeypatch, "compare", "--resume", "done", "--json", "--threads", "1") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["contenders"][0]["name"] == "ce"
    args = ["--recipe", "tiny.toml", "--methods", "kd,mc-distil", "--seeds", "0-1", "--out", "done", "--threads", "1"]
    assert mcd(monkeypatch, "compare", *args, "--beside", str(whole)) == 0  # the same again, or a part of it
    said = capsys.readouterr()
    assert "verdict: mc-distil over kd" in said.out
    assert "cells to train" not in said.err
    assert (place / "done" / "cells" / "kd-seed0" / "ladder.svg").is_file()


def test_a_dry_run_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "noisy.toml").write_text("label_noise = 0.2\nepochs = 5\n", encoding="utf-8")
    args = ["--recipe", "tiny.toml", "--methods", "ce,mc-distil", "--seeds", "3", "--dry-run", "--json"]
    args += ["--overlay", "noisy.toml", "--epochs", "2"]  # a flag beats an overlay, which beats the recipe
    assert mcd(monkeypatch, "compare", *args, "--threads", "1") == 0
    said = capsys.readouterr()
    plan = json.loads(said.out)
    assert plan["estimate_seconds"] > 0
    assert (plan["recipe"]["label_noise"], plan["recipe"]["epochs"]) == (0.2, 2)
    assert [one["updates"] for one in plan["contenders"]] == [0, 4]
    assert "warning: C-NET updates: mc-distil 4; fewer than 500" in said.err
    assert sorted(path.name for path in place.iterdir()) == ["noisy.toml", "tiny.toml"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--methods kd,mc-dstil", "unknown method or overlay 'mc-dstil'; did you mean"),
        ("--methods kd,kd", "duplicate method kd"),
        ("--seeds 0,x", "--seeds takes numbers such as 0,1,2 or 0-4; got '0,x'"),
        ("--seeds 1,1", "duplicate seed 1"),
        ("--out tiny.toml", "is a file or under one"),
        ("--resume nowhere", "nowhere is not a comparison"),
        ("--resume nowhere --methods kd", "--resume uses the plan in its folder"),
        ("--paper --methods kd", "--paper: the paper has no results"),
        ("--methods kd --seeds 0 --device nope", "--device takes auto, cpu, cuda or mps"),
        ("--overlay none.toml", "recipe file none.toml does not exist"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    recipe = [] if "--resume" in args else ["--recipe", "tiny.toml"]
    assert mcd(monkeypatch, "compare", *recipe, *args.split()) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len([line for line in said.err.splitlines() if line.startswith("mcd: ")]) == 1
    assert said.out == ""
    assert [path.name for path in place.iterdir()] == ["tiny.toml"]


def test_an_interruption_names_the_way_back(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the midst of a cell: exit 130, and the command that goes on; the same command again does, too."""
    from mcd_cli.cli.progress import View

    stop = signal_at("distill", 2)
    seen = View.__call__
    args = ["--recipe", "tiny.toml", "--methods", "kd", "--seeds", "0", "--threads", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(View, "__call__", lambda self, event: (seen(self, event), stop(event))[0])
        assert mcd(monkeypatch, "compare", *args) == 130
    assert "resume with: mcd compare --resume runs/digits-compare-1" in capsys.readouterr().err
    assert mcd(monkeypatch, "compare", *args) == 0
    said = capsys.readouterr()
    assert "resuming from step 2" in said.err
    assert [path.name for path in (place / "runs").iterdir()] == ["digits-compare-1"]
