"""`mcd profile`: the cost of architectures or of a run's students, or the paper's Table 3 beside ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mcd_cli.cli.options import INPUT_SHAPE, NUM_CLASSES
from mcd_cli.comparison.paper import SHAPES, TABLE_3, Shape, agrees
from mcd_cli.errors import UserError, reason_of
from mcd_cli.formats.latency import Conditions, keep, of_architecture, of_student, parse_batches
from mcd_cli.formats.latency import document as measured
from mcd_cli.ladder.variants import FLOAT32, Variant
from mcd_cli.models import ARCHITECTURES, build
from mcd_cli.quantities import show_count, show_ms, show_size
from mcd_cli.reporting.console import print_json, results, table, talk

if TYPE_CHECKING:
    from mcd_cli.ladder.manifest import Ladder
    from mcd_cli.ladder.schema import Timing
    from mcd_cli.models.cost import Cost

LARGEST_SIDE = 2048  # pixels; counting runs one forward pass
CONVENTION = "MACs are multiply-adds for one image; BatchNorm counts towards params, not MACs"


@dataclass(frozen=True)
class Row:
    """One network on one input, with the paper's (MACs, params) if it is in Table 3; a run's with its file."""

    name: str
    arch: str
    input_shape: Shape
    num_classes: int
    cost: Cost
    paper: tuple[str, str] | None = None
    file: Variant | None = None

    @property
    def size(self) -> tuple[int, str]:
        """Bytes, and of what: the file that `mcd select` measures, or the network's float32 tensors."""
        return (self.cost.bytes, "tensors") if self.file is None else (self.file.bytes, self.file.measured_by)

    @property
    def agrees(self) -> tuple[bool, bool]:
        """Whether our MACs and params, rounded or truncated, are the paper's."""
        assert self.paper is not None
        return agrees(self.cost.macs, self.paper[0]), agrees(self.cost.params, self.paper[1])


def profile(
    archs: Sequence[str] = (),
    *,
    input_shape: str = INPUT_SHAPE,
    classes: int = NUM_CLASSES,
    run: str | Path | None = None,
    by_layer: bool = False,
    latency: bool = False,
    batch: str = "1",
    threads: int = 1,
    warmup: int = 20,
    runs: int = 200,
    plot: bool = False,
    paper: bool = False,
    json_output: bool = False,
) -> None:
    """Print MACs, parameters and bytes of architectures, of a run's students, or of the paper's Table 3.

    latency: measure in onnxruntime too, and store it in the run's manifest. plot: draw the run's plots into its
    folder. Raises UserError for an unknown architecture, an invalid shape, and options that contradict each other.
    """
    if bool(archs) + (run is not None) + paper > 1:
        raise UserError("name architectures, --run or --paper, only one of them")
    if not archs and (input_shape, classes) != (INPUT_SHAPE, NUM_CLASSES):
        raise UserError("--input and --classes need architectures, for example: mcd profile resnet10-s")
    for flag, is_set in (("--by-layer", by_layer), ("--latency", latency)):
        if is_set and not archs and run is None:
            raise UserError(f"{flag} needs architectures or --run, for example: mcd profile resnet10-s {flag}")
    if plot and run is None:
        raise UserError("--plot draws the plots of a run; name it: --run DIR")
    if not (archs or run or paper):
        raise UserError(
            "name architectures (mcd profile resnet10-s; mcd list architectures), a run's students (--run DIR), or "
            "the paper's Table 3 (--paper)"
        )
    how = Conditions(parse_batches(batch), threads, warmup, runs)
    ladder = None if run is None else _ladder(run)
    if ladder is not None:
        rows = _run_rows(ladder)
    else:
        rows = _table_3_rows() if paper else _arch_rows(archs, parse_shape(input_shape), classes)
    timings = _measured(rows, ladder, how) if latency else {}
    if plot:
        assert ladder is not None
        _plot(ladder)
    if json_output:
        print_json({"rows": [_document(row, by_layer, timings, how) for row in rows]})
        return
    console = results()
    if paper:
        _print_table_3(console, rows)
    elif by_layer:
        for row in rows:
            _print_layers(console, row)
    else:
        _print_rows(console, rows)
    if timings:
        _print_latencies(console, timings, how)
    talk().print(CONVENTION)
    for row in rows:
        if row.cost.uncounted:
            talk().print(f"{row.name}: operators without a MAC count: {', '.join(row.cost.uncounted)}")


def parse_shape(text: str) -> Shape:
    """`3x96x96` → (3, 96, 96): colour channels, height, width. Raises UserError."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text, re.ASCII)
    if match is None:
        raise UserError(f"--input {text!r} is not an image shape; write it like 3x96x96 (channels, height, width)")
    channels, height, width = (int(side) for side in match.groups())
    if channels != 3:
        raise UserError(f"--input {text}: the networks take 3 colour channels; write it like 3x{height}x{width}")
    if not 0 < min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise UserError(f"--input {text}: height and width must be between 1 and {LARGEST_SIDE}")
    return channels, height, width


def _table_3_rows() -> list[Row]:
    rows = []
    for i, (shape, num_classes) in enumerate(SHAPES.values()):
        for arch, printed in TABLE_3.items():
            cost = _cost(arch, shape, num_classes)
            rows.append(Row(arch, arch, shape, num_classes, cost, printed[i]))
    return rows


def _arch_rows(archs: Sequence[str], shape: Shape, num_classes: int) -> list[Row]:
    if not 0 < num_classes <= 10**6:
        raise UserError(f"--classes {num_classes} must be between 1 and 1000000")
    for arch in archs:
        ARCHITECTURES.check(arch)  # before torch is imported
    return [Row(arch, arch, shape, num_classes, _cost(arch, shape, num_classes)) for arch in archs]


def _ladder(run: str | Path) -> Ladder:
    from mcd_cli.ladder.manifest import find_run, load_ladder

    return load_ladder(find_run(run))


def _measured(rows: Sequence[Row], ladder: Ladder | None, how: Conditions) -> dict[str, list[Timing]]:
    if ladder is None:
        return {row.name: of_architecture(row.arch, row.input_shape, row.num_classes, how) for row in rows}
    timings = {student.name: of_student(student, ladder, how) for student in ladder.students}
    keep(ladder, timings, how, talk().print)
    return timings


def _plot(ladder: Ladder) -> None:
    from mcd_cli.reporting.plots import draw

    assert ladder.folder is not None
    for path in draw(ladder, ladder.folder):
        talk().print(str(path))


def _run_rows(ladder: Ladder) -> list[Row]:
    shape, num_classes = ladder.dataset.input_shape, len(ladder.dataset.classes)
    rows = []
    for student in ladder.students:
        cost = _cost(student.arch, shape, num_classes)
        if (cost.macs, cost.params) != (student.macs, student.params):
            talk().print(
                f"{student.name}: the manifest says {student.macs:,} MACs and {student.params:,} params, but "
                f"{student.arch} has {cost.macs:,} and {cost.params:,}; was the run made by another version of mcd?"
            )
        rows.append(Row(student.name, student.arch, shape, num_classes, cost, file=Variant(student)))
    return rows


def _cost(arch: str, shape: Shape, num_classes: int) -> Cost:
    import torch

    from mcd_cli.models import cost

    torch.set_num_threads(1)  # for one image, more threads only wait for each other
    network = build(arch, num_classes)
    try:
        return cost.profile(network, shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{arch} cannot take {_shown(shape)}; try another --input ({reason_of(error)})") from None


def _print_rows(console: Console, rows: Sequence[Row]) -> None:
    """One table for one input."""
    row = rows[0]
    drawn = table(console, "network", "MACs", "params", "size", "of", title=_input(row))
    for row in rows:
        name = row.name if row.name == row.arch else f"{row.name} ({row.arch})"
        mark = " + uncounted" if row.cost.uncounted else ""
        drawn.add_row(
            name, show_count(row.cost.macs) + mark, f"{row.cost.params:,}", show_size(row.size[0]), row.size[1]
        )
    console.print(drawn)


def _print_layers(console: Console, row: Row) -> None:
    drawn = table(console, "layer", "MACs", "share", "params", title=f"{row.name}: {_input(row)}")
    for layer in row.cost.by_layer:
        share = f"{100 * layer.macs / max(row.cost.macs, 1):.1f} %"
        drawn.add_row(layer.name or "(itself)", f"{layer.macs:,}", share, f"{layer.params:,}")
    drawn.add_row("total", f"{row.cost.macs:,}", "100.0 %", f"{row.cost.params:,}")
    console.print(drawn)


def _print_table_3(console: Console, rows: Sequence[Row]) -> None:
    names = {shape: name for name, (shape, _) in SHAPES.items()}
    odd = []
    for shape, grouped in groupby(rows, key=lambda row: row.input_shape):
        group = list(grouped)
        title = f"Table 3, {names[shape]} ({_input(group[0])})"
        drawn = table(console, "architecture", "MACs", "paper", "params", "paper", title=title)
        for row in group:
            assert row.paper is not None
            ours = (f"{row.cost.macs / 1e6:.2f} M", f"{row.cost.params:,}")
            paper = [p + (" *", "  ")[agreed] for p, agreed in zip(row.paper, row.agrees, strict=True)]
            odd += [
                f"{row.arch} on {names[shape]}, {value}, not {printed}"
                for value, printed, agreed in zip(ours, row.paper, row.agrees, strict=True)
                if not agreed
            ]
            drawn.add_row(row.arch, ours[0], paper[0], ours[1], paper[1])
        console.print(drawn)
        console.print()
    console.print("The paper truncates some figures and rounds others (it prints 16.63 M as 16 M, 2.86 M as 3 M).")
    console.print(f"* differs from the paper, whether truncated or rounded: {'; '.join(odd)}.")


def _document(row: Row, by_layer: bool, timings: Mapping[str, list[Timing]], how: Conditions) -> dict[str, Any]:
    """A row of the JSON document. Numbers are in base units: MACs of one image, parameters, bytes."""
    document: dict[str, Any] = {
        "name": row.name,
        "arch": row.arch,
        "input_shape": list(row.input_shape),
        "num_classes": row.num_classes,
        "macs": row.cost.macs,
        "params": row.cost.params,
        "bytes": row.size[0],
        "bytes_of": row.size[1].lower(),
        "uncounted": list(row.cost.uncounted),
    }
    if row.paper is not None:
        macs, params = row.paper
        document["paper"] = {"macs": macs, "params": params}
        document["agrees"] = dict(zip(("macs", "params"), row.agrees, strict=True))
    if by_layer:
        document["by_layer"] = [asdict(layer) for layer in row.cost.by_layer]
    if row.name in timings:
        document["latency"] = measured(timings[row.name], how)
    return document


def _input(row: Row) -> str:
    return f"{_shown(row.input_shape)}, {row.num_classes} classes"


def _shown(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _print_latencies(console: Console, timings: dict[str, list[Timing]], how: Conditions) -> None:
    drawn = table(console, "network", "batch", "p50", "p90", "p99", "images/s", title=how.here)
    for name, of_network in timings.items():
        float32 = {t.batch: t.p50_ms for t in of_network if t.format == FLOAT32}
        for t in sorted(of_network, key=lambda t: (t.format != FLOAT32, t.batch)):
            shown = name if t.format == FLOAT32 else f"{name}.{t.format}"
            slower = t.format != FLOAT32 and t.p50_ms > float32[t.batch]
            times = [show_ms(value, 3) for value in (t.p50_ms, t.p90_ms, t.p99_ms)]
            rate = f"{1000 * t.batch / t.p50_ms:,.0f}{' (slower than float32)' * slower}"
            drawn.add_row(shown, str(t.batch), *times, rate)
    console.print(drawn)
    talk().print(f"latency per call of onnxruntime on the CPU, {how.warmup} warm-up and {how.runs} timed calls each")
