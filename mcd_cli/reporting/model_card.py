"""A finished run as sections: the model card, and the texts and tables of the HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mcd_cli.ladder.manifest import Ladder
from mcd_cli.ladder.metrics import EpochRecord, degenerate, last_of_stage
from mcd_cli.ladder.schema import ExportEntry, StudentEntry
from mcd_cli.quantities import show_count, show_ms, show_percent, show_size
from mcd_cli.reporting.ladder_table import (
    SCORES,
    SCORES_ARE,
    Z95,
    caption,
    shown_gain,
    shown_scores,
    standard_error,
)
from mcd_cli.reporting.style import loss_label
from mcd_cli.reporting.table import Grid


@dataclass(frozen=True)
class Section:
    """Blocks under a heading: a paragraph (text), bullets (a tuple of texts) or a table."""

    title: str
    blocks: tuple[str | tuple[str, ...] | Grid, ...]


def students(ladder: Ladder) -> Section:
    """Each student's cost and accuracy."""
    head = ("student", "architecture", "MACs", "params", "bytes", "CE (warm start)", "test", "gain", "val", *SCORES)
    rows = []
    for s in ladder.students:
        num_test = ladder.dataset.sizes.get("test")
        error = f" ± {100 * Z95 * standard_error(s.accuracy.test, num_test):.1f}" if num_test else ""
        ce = s.accuracy.ce
        gain = "–" if ce is None else shown_gain(s.accuracy.test - ce, s.accuracy.gain_p)
        costs = (show_count(s.macs), show_count(s.params, 3), show_size(s.bytes, 3))
        start = "–" if ce is None else show_percent(ce)
        reached = (start, show_percent(s.accuracy.test) + error, gain, show_percent(s.accuracy.val))
        rows.append((s.name, s.arch, *costs, *reached, *shown_scores(s, show_percent, "–")))
    notes = "MACs: multiply-adds of convolutions and linear layers for one image. Bytes: the float32 weights file. "
    return Section("Students", (Grid(head, tuple(rows)), f"{notes}{caption(ladder)}. {SCORES_ARE}."))


def calibration(ladder: Ladder) -> Section:
    """Each student's temperature, and what it does to the probabilities."""
    head = ("student", "temperature", "NLL on val", "NLL on test", "ECE on val", "ECE on test")
    rows = []
    for s in ladder.students:
        c = s.calibration
        if c is None:
            continue
        both = {part: (c.raw[part], c.scaled[part]) for part in ("val", "test") if part in c.raw and part in c.scaled}
        nll = {part: f"{raw.nll:.3f} → {scaled.nll:.3f}" for part, (raw, scaled) in both.items()}
        ece = {part: f"{show_percent(raw.ece)} → {show_percent(scaled.ece)}" for part, (raw, scaled) in both.items()}
        rows.append(
            (s.name, f"{c.temperature:.3g}", nll["val"], nll.get("test", "–"), ece["val"], ece.get("test", "–"))
        )
    if not rows:
        return Section(
            "Calibration",
            ("No temperature was fitted (the run is of an older mcd, or trained on val): probabilities are raw.",),
        )
    note = (
        "From softmax(z) to softmax(z / T) of the logits z. The temperature T minimises the NLL on val (Guo et al. "
        "2017) and changes no predicted class; test was only scored with it. An int8 file has the same temperature."
    )
    return Section("Calibration", (Grid(head, tuple(rows)), note))


def exports(ladder: Ladder) -> Section:
    """The ONNX files and the results of their checks."""
    head = ("file", "bytes", "checked on", "accuracy", "against the float32 model", "logits", "sha256")
    rows = tuple(
        (
            s.exports[format].rpartition("/")[2],
            show_size(e.bytes, 3),
            f"{e.num_val:,} images of val",
            show_percent(e.val),
            _gate(e),
            "divided by T" if e.calibrated else "raw",
            e.sha256[:12],
        )
        for s in ladder.students
        for format, e in s.exported.items()
        if format in s.exports
    )
    if not rows:
        return Section("Exports", ("Nothing is exported yet; run `mcd export`.",))
    note = (
        "A float32 file is kept only if onnxruntime's logits differ from the model's by no more than 1e-4 of the "
        "largest and every prediction is the same; an int8 file only if it loses no more accuracy on val than allowed."
    )
    return Section("Exports", (Grid(head, rows), note))


def _gate(entry: ExportEntry) -> str:
    gate = entry.gate
    if "difference" in gate:
        return f"largest difference {gate['difference']:.1e} of {gate['largest']:.1f}; {gate['changed']} changed"
    if "int8" not in gate:
        return "–"
    fell = (
        f"{100 * abs(gate['drop']):.2f} points {'lost' if gate['drop'] > 0 else 'gained'}"
        if gate["drop"]
        else "no change"
    )
    times = gate.get("p50_ms", {})
    if len(times) < 2:
        return fell
    slower = "slower" if times["int8"] > times["onnx"] else "faster"
    shown = f"{show_ms(times['int8'], 3)} instead of {show_ms(times['onnx'], 3)}"
    return f"{fell} (allowed: {100 * gate['max_drop']:g}); {slower}: {shown}"


def latencies(ladder: Ladder) -> Section:
    """Latencies by hardware."""
    head = ("network", "batch", "p50", "p90", "p99", "calls")
    blocks: list[str | tuple[str, ...] | Grid] = []
    for hardware in dict.fromkeys(key for s in ladder.students for key in s.latency):
        rows = [
            (
                _variant_name(s, t.format),
                str(t.batch),
                *(show_ms(ms, 3) for ms in (t.p50_ms, t.p90_ms, t.p99_ms)),
                f"{t.runs:,}",
            )
            for s in ladder.students
            for t in s.latency.get(hardware, ())
        ]
        blocks += [f"On {hardware}:", Grid(head, tuple(rows))]
    return Section("Latencies", tuple(blocks) or ("Not measured yet; run `mcd profile --run DIR --latency`.",))


def _variant_name(student: StudentEntry, format: str) -> str:
    return student.name if format == "onnx" else f"{student.name}.{format}"


def coordinator(ladder: Ladder, records: Sequence[EpochRecord]) -> Section:
    """C-NET's weights in the first and the last epoch, and whether they still differ between images."""
    own = [record for record in records if record.is_of_method]
    learned = [record for record in own if any(s.spread for s in record.students.values())]
    title = "How the losses were weighted"
    if not learned:
        weights = {name: s.weights for record in last_of_stage(own) for name, s in record.students.items()}
        losses = list(dict.fromkeys(loss for own in weights.values() for loss in own))
        rows = [(name, *(f"{own[x]:.2f}" if x in own else "–" for x in losses)) for name, own in weights.items()]
        intro = f"{ladder.method} has no coordinator."
        head = ("student", *map(loss_label, losses))
        if not rows:
            return Section(title, (intro,))
        return Section(title, (f"{intro} Mean weight of each loss in the last epoch:", Grid(head, tuple(rows))))
    updates = max(record.coordinator_updates for record in learned)
    intro = (
        f"C-NET, updated {updates:,} times by the students' loss on val, set the weights of every image's losses for "
        "every student. Below: the mean weight over images in its first and last epoch, its spread over images "
        "(standard deviation) and the share of outputs within 2 % of 0 or 1, both in the last epoch."
    )
    rows = []
    for student in ladder.students:
        epochs = [record.students[student.name] for record in learned if student.name in record.students]
        if not epochs:
            continue
        first, last = epochs[0], epochs[-1]
        for symbol, spread in (last.spread or {}).items():
            figures = (first.weights[symbol], last.weights[symbol], spread)
            saturated = show_percent((last.saturated or {})[symbol])
            rows.append((student.name, loss_label(symbol), *(f"{value:.3f}" for value in figures), saturated))
    head = ("student", "weight of", "first epoch", "last epoch", "spread", "saturated")
    warnings = tuple(dict.fromkeys(warning for record in last_of_stage(learned) for warning in degenerate(record)))
    verdict = warnings or ("In the last epoch, every student's weights differ between images or are not near a limit.",)
    return Section(title, (intro, Grid(head, tuple(rows)), verdict))


def card(ladder: Ladder) -> list[Section]:
    """The model card: what the models are, what they are for, their training and test data, and their limits."""
    data, teacher = ladder.dataset, ladder.teacher
    classes = ", ".join(data.classes[:12]) + (f", … ({len(data.classes)} in all)" if len(data.classes) > 12 else "")
    shape = "×".join(map(str, data.input_shape))
    about = (
        f"{len(ladder.students)} independent image classifiers of different cost, trained by `{ladder.method}` "
        f"with mcd {ladder.version} on {data.name}, finished {ladder.created[:10]}."
    )
    taught = "No teacher." if teacher is None else _teacher(ladder)
    sizes = ", ".join(f"{count:,} {part}" for part, count in data.sizes.items())
    trained = (
        f"Data: {data.name}, {shape}; images: {sizes or 'not recorded'}; split seed {data.split_seed}; "
        f"fingerprint {data.fingerprint[:12]}.",
        taught,
        f"Recipe sha256 {ladder.recipe_sha256[:12]}, seed {ladder.seed}, on {ladder.device}"
        + "".join(f", {key} {value}" for key, value in ladder.hardware.items() if key != "type")
        + ".",
    )
    return [
        Section("What this is", (about, f"Classes: {classes}.")),
        students(ladder),
        calibration(ladder),
        Section("Use", tuple(_use(ladder, shape))),
        Section("Training", (trained,)),
        exports(ladder),
        latencies(ladder),
        Section("Limits", (tuple(_limits(ladder)),)),
    ]


def _teacher(ladder: Ladder) -> str:
    teacher = ladder.teacher
    assert teacher is not None
    saw = {True: "it has seen val", False: "it has not seen val", None: "whether it has seen val is unknown"}[
        teacher.saw_val
    ]
    reached = f"{show_percent(teacher.accuracy.test)} on test, {show_percent(teacher.accuracy.val)} on val"
    return f"Teacher: {teacher.arch}, {reached}; {saw}; sha256 {teacher.sha256[:12]}."


def _use(ladder: Ladder, shape: str) -> Iterator[str | tuple[str, ...]]:
    odds = (
        "Probabilities are calibrated on val, for images like those: divide raw logits by the temperature above, as "
        "`mcd predict` does."
        if any(s.calibration is not None for s in ladder.students)
        else "The probabilities are not calibrated."
    )
    yield (
        f"For images of exactly these classes, framed as in {ladder.dataset.name}. Every image gets one "
        f"of the classes, even if it shows none of them. {odds}"
    )
    run = "RUN" if ladder.folder is None else ladder.folder.name
    yield (
        f"Input: RGB float32 [n, {shape.replace('×', ', ')}] in [0, 1], normalisation inside; output: logits "
        f"[n, {len(ladder.dataset.classes)}].",
        f"Shell: `mcd select --run {run} --max-macs 16M`, `mcd predict photo.png --run {run}`.",
        f'Python: `load_ladder("{run}").select(max_macs="16M").load()`, `load_ladder("{run}").session(NAME)`.',
    )


def _limits(ladder: Ladder) -> Iterator[str]:
    yield "One seed (n = 1): with another seed, small differences between students or methods may be reversed."
    yield (
        "val chose each student's checkpoint and temperature (and trained C-NET, if there is one): figures on it are "
        "optimistic."
    )
    yield "The test set was read once, at the end; int8 files are checked only on val."
    if ladder.teacher is not None and ladder.teacher.saw_val is not False:
        yield "The teacher may have been trained on images of val, so accuracy on val may be too high."
    yield "Not tested: images from other sources, subgroups, and adversarial inputs."


def head(ladder: Ladder, license: str) -> str:
    """The YAML at the top of a card, which the Hugging Face Hub reads: every student with its test accuracy.

    license: an identifier of the Hub, such as apache-2.0. Values are in YAML's flow style, which is JSON.
    """
    dataset = ladder.dataset.name
    models = [
        {
            "name": student.name,
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"name": dataset, "type": dataset, "split": "test"},
                    "metrics": [{"type": "accuracy", "value": student.accuracy.test}],
                }
            ],
        }
        for student in ladder.students
    ]
    values = {
        "license": license,
        "library_name": "mcd",
        "pipeline_tag": "image-classification",
        "tags": ["knowledge-distillation", ladder.method, *dict.fromkeys(s.arch for s in ladder.students)],
        "datasets": [dataset],
        "metrics": ["accuracy"],
        "model-index": models,
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---", "", ""])


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub-flavoured Markdown."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            if isinstance(block, Grid):
                parts.append(block.markdown())
            else:
                parts.append(block if isinstance(block, str) else "\n".join(f"- {item}" for item in block))
    return "\n\n".join(parts) + "\n"
