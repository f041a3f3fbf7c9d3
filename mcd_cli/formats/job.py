"""The work of `mcd export`: write a student as float32 and int8, check each file, record it in the manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.errors import GateRefused, UserError
from mcd_cli.files import sha256_of, write_whole
from mcd_cli.ladder.folder import EXPORTS, RECIPE
from mcd_cli.ladder.latency import hardware_key, measure, measure_calls, remembered
from mcd_cli.ladder.manifest import Ladder, update
from mcd_cli.ladder.schema import ExportEntry, StudentEntry, Timing
from mcd_cli.ladder.variants import FLOAT32, FORMATS, INT8, NO_PREPROCESS, Variant
from mcd_cli.quantities import show_ms, show_size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mcd_cli.data.dataset import Dataset
    from mcd_cli.formats.int8 import Int8Gate
    from mcd_cli.formats.other import Writer

NUM_JUDGED = 512  # val images in the float32 check; the int8 check uses all of val
THREADS = 1  # for measuring latencies


@dataclass(frozen=True)
class ExportJob:
    """Options of one `mcd export`, shared by all students."""

    ladder: Ladder
    folder: Path
    dataset: Dataset
    target: Path
    in_run: bool  # the target is the run's own folder, so the manifest records the files
    preprocess: bool
    calibrated: bool  # the files divide their logits by the student's temperature, which it then has
    max_drop: float
    say: Callable[[str], None]  # receives one line per file with the result of its check

    others: tuple[str, ...] = ()  # formats beside ONNX

    def path(self, student: StudentEntry, format: str) -> Path:
        ending = FORMATS[format].ending if format in FORMATS else f"{format}.onnx"
        return self.target / f"{student.name}.{ending}"


def export_student(
    job: ExportJob, student: StudentEntry, as_int8: bool, refused: list[str]
) -> Iterator[dict[str, Any]]:
    """Export float32, then int8 and the others. Yields the entry of each file that passes; failures go to `refused`."""
    from mcd_cli.data.loader import plain
    from mcd_cli.formats.onnx_file import Divided, divide_logits, keep_onnx, to_onnx
    from mcd_cli.models.normalized import Normalized

    model = student.load()
    assert isinstance(model, Normalized)
    judged = job.dataset.val[:NUM_JUDGED]
    images, labels = plain(job.dataset.images[judged]), job.dataset.labels[judged]
    if not job.preprocess:
        images = (images - model.mean) / model.std
    (format,) = formats_of(job.preprocess, False)
    path = job.path(student, format)
    network = model if job.preprocess else model.network
    content = to_onnx(network, tuple(images.shape[1:]), _metadata(job, student))
    if job.calibrated:
        assert student.calibration is not None
        temperature = student.calibration.temperature
        network, content = Divided(network, temperature), divide_logits(content, temperature)
    job.target.mkdir(parents=True, exist_ok=True)
    try:
        gate = keep_onnx(network, content, images, labels, path)
    except GateRefused as refusal:
        refused.append(str(refusal))
        _forget(job, student, format)
        return
    job.say(f"{student.name}: {gate}{'; divides by its temperature' * job.calibrated}")
    yield _keep(job, student, format, gate.accuracy[1], gate.num_images, asdict(gate))
    if as_int8:
        yield from _export_int8(job, student, path, refused)
    for other in job.others:
        yield from _export_other(job, student, other, network, content, (images, labels), refused)


def _export_other(
    job: ExportJob,
    student: StudentEntry,
    format: str,
    network: nn.Module,
    content: bytes,
    judged: tuple[Tensor, Tensor],
    refused: list[str],
) -> Iterator[dict[str, Any]]:
    """Write the student in this format, check it in its runtime, and keep it if it computes what the model does."""
    from mcd_cli.formats.onnx_file import check

    writer: Writer = FORMATS.load(format)()
    path = job.path(student, format)
    images, labels = judged
    with tempfile.TemporaryDirectory() as place:
        files = writer.write(network, content, tuple(images.shape[1:]), Path(place, path.name))
        run = writer.open(files[0], THREADS)
        gate = check(network, run, images.cpu(), labels.cpu(), writer.tolerance, writer.max_drop)
        times = measure_calls({format: run}, (1, *images.shape[1:]))
        if not gate.passed:
            refused.append(f"{path.name}: the exported file differs from the model: {gate}; no file is written")
            _forget(job, student, format)
            return
        size = sum(file.stat().st_size for file in files)
        for file in reversed(files):  # the one that names the format last
            write_whole(job.target / file.name, file.read_bytes())
    job.say(f"{path.name}: {gate}; {show_size(size, 3)}; {show_ms(times[format].p50_ms, 3)} at p50, batch 1")
    yield _keep(job, student, format, gate.accuracy[1], gate.num_images, asdict(gate), tuple(times.values()), size)


def kept_exports(
    student: StudentEntry, formats: Sequence[str], calibrated: bool, max_drop: float
) -> list[dict[str, Any]]:
    """The JSON entries of the student's files in the run's folder, if all of them are as they passed their check.

    That is: unchanged (sha256), calibrated or not as asked, and int8 within max_drop, a fraction. Otherwise empty.
    """
    entries = []
    for format in formats:
        entry, file = student.exported.get(format), Variant(student, format).file
        if entry is None or file is None or entry.calibrated != calibrated or sha256_of(file) != entry.sha256:
            return []
        num_lost = round(entry.gate.get("drop", 0.0) * entry.num_val)
        if num_lost > max_drop * entry.num_val + 1e-9:
            return []
        entries.append({"student": student.name, "format": format, "path": str(file)} | asdict(entry))
    return entries


def formats_of(preprocess: bool, as_int8: bool) -> list[str]:
    """The formats that an export writes: float32, then int8."""
    float32, int8 = (FLOAT32, INT8) if preprocess else (NO_PREPROCESS, f"{NO_PREPROCESS}.{INT8}")
    return [float32, int8] if as_int8 else [float32]


def _export_int8(job: ExportJob, student: StudentEntry, float32: Path, refused: list[str]) -> Iterator[dict[str, Any]]:
    from mcd_cli.formats import int8
    from mcd_cli.seeds import generator

    _, format = formats_of(job.preprocess, True)
    name = job.path(student, format).name
    train = job.dataset.train
    import torch

    order = torch.randperm(len(train), generator=generator("calibration", job.ladder.seed))
    calibration = next(_batches(job, train[order[: int8.NUM_CALIBRATION]], int8.NUM_CALIBRATION))[0]
    plain = float32.read_bytes()
    content = int8.quantise(plain, calibration)
    gate = int8.check_int8(plain, content, _batches(job, job.dataset.val, int8.BATCH), job.max_drop)
    times = measure({FLOAT32: plain, INT8: content}, threads=THREADS)
    sizes = f"{show_size(len(content), 3)} instead of {show_size(len(plain), 3)}"
    job.say(f"{name}: {gate}; {sizes}; {int8.speed(times[FLOAT32], times[INT8])}")
    if not gate.passed:
        refused.append(f"{name}: {gate}, more than --max-drop {100 * job.max_drop:g} allows; no file is written")
        _forget(job, student, format)
        return
    write_whole(job.path(student, format), content)
    timings = tuple(times.values()) if job.preprocess else ()
    yield _keep(job, student, format, gate.int8, gate.num_images, _figures(gate, times), timings)


def _figures(gate: Int8Gate, times: dict[str, Timing]) -> dict[str, Any]:
    return asdict(gate) | {"drop": gate.drop, "p50_ms": {format: t.p50_ms for format, t in times.items()}}


def _keep(
    job: ExportJob,
    student: StudentEntry,
    format: str,
    val: float,
    num_val: int,
    gate: dict[str, Any],
    timings: tuple[Timing, ...] = (),
    size: int | None = None,
) -> dict[str, Any]:
    """Record the file in the manifest if it is in the run's folder; returns its entry for --json."""
    path = job.path(student, format)
    entry = ExportEntry(
        sha256=sha256_of(path),
        bytes=path.stat().st_size if size is None else size,
        val=val,
        num_val=num_val,
        gate=gate,
        calibrated=job.calibrated,
    )

    def with_export(old: StudentEntry) -> StudentEntry:
        if old.name != student.name:
            return old
        exports = old.exports | {format: f"{EXPORTS}/{path.name}"}
        latency = remembered(old, timings, hardware_key(THREADS)) if timings else old.latency
        return replace(old, exports=exports, exported=old.exported | {format: entry}, latency=latency)

    if job.in_run:
        update(job.folder, with_export)
    return {"student": student.name, "format": format, "path": str(path)} | asdict(entry)


def _forget(job: ExportJob, student: StudentEntry, format: str) -> None:
    """Remove a file of that name from an earlier export, because the new one failed its check."""
    job.path(student, format).unlink(missing_ok=True)

    def without_export(old: StudentEntry) -> StudentEntry:
        if old.name != student.name:
            return old
        exports = {key: path for key, path in old.exports.items() if key != format}
        exported = {key: entry for key, entry in old.exported.items() if key != format}
        return replace(old, exports=exports, exported=exported)

    if job.in_run and format in student.exports:
        update(job.folder, without_export)


def _batches(job: ExportJob, ids: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """Batches of images in the file's input format, [n, 3, H, W] float32, and labels [n]."""
    import numpy as np

    from mcd_cli.data.loader import plain

    mean, std = (np.array(v, dtype=np.float32).reshape(1, 3, 1, 1) for v in (job.dataset.mean, job.dataset.std))
    for batch in ids.split(size):
        images = plain(job.dataset.images[batch]).contiguous().numpy()
        yield (images if job.preprocess else (images - mean) / std), job.dataset.labels[batch].numpy()


def _metadata(job: ExportJob, student: StudentEntry) -> dict[str, object]:
    dataset = job.ladder.dataset
    return {
        "student": student.name,
        "arch": student.arch,
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        "preprocess": job.preprocess,  # whether the file itself computes (x - mean) / std
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "accuracy": asdict(student.accuracy),
        "temperature": None if student.calibration is None else student.calibration.temperature,
        "calibrated": False,  # whether the file itself divides its logits by the temperature
        "macs": student.macs,
        "recipe_sha256": job.ladder.recipe_sha256,
        "mcd": job.ladder.version,
    }


def load_training_data(ladder: Ladder, folder: Path, data_root: str | None, say: Callable[[str], None]) -> Dataset:
    """The data set that the run was trained on; raises UserError if the images differ from it."""
    from mcd_cli.data import load_dataset
    from mcd_cli.recipe.loading import load_recipe

    recipe = load_recipe(str(folder / RECIPE), {})
    dataset = load_dataset(
        recipe.dataset,
        data_root=data_root or recipe.data_root,
        image_size=recipe.image_size,
        split_seed=recipe.split_seed,
        skip_bad_images=True,  # the fingerprint shows whether the run skipped the same images
        report=say,
    )
    if dataset.fingerprint != ladder.dataset.fingerprint:
        raise UserError(
            f"data set {recipe.dataset} differs from the one that {folder} was trained on; "
            "give the right folder with --data-root"
        )
    return dataset
