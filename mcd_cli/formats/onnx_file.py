"""Exports a student as one ONNX file, and keeps it only if onnxruntime's results match the float32 model's."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mcd_cli.errors import GateRefused
from mcd_cli.files import write_whole
from mcd_cli.ladder.session import Images, Logits

TOLERANCE = 1e-4  # as a fraction of the largest logit


@dataclass(frozen=True)
class Gate:
    """The float32 check: how far the file's logits and top-1 classes are from the model's, on real images."""

    difference: float  # largest absolute difference between two logits
    largest: float  # largest absolute logit
    changed: int  # images whose top-1 class differs although its margin is more than twice the difference
    accuracy: tuple[float, float]  # the model's and the file's
    num_images: int
    tolerance: float = TOLERANCE
    max_drop: float = 0.0  # a fraction; with 0, the accuracies must be equal

    @property
    def passed(self) -> bool:
        alike = self.difference <= self.tolerance * self.largest and self.changed == 0
        return alike and abs(self.accuracy[0] - self.accuracy[1]) <= self.max_drop

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.difference:.1e} (largest logit {self.largest:.1f}), "
            f"top-1 differs for {self.changed} of {self.num_images} images, "
            f"accuracy {self.accuracy[1]:.2%}, the model's {self.accuracy[0]:.2%}"
        )


class Divided(nn.Module):
    """A network's logits divided by a temperature: what a calibrated file computes."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits / self.temperature


def keep_onnx(model: nn.Module, content: bytes, images: Tensor, labels: Tensor, path: Path) -> Gate:
    """Write `content` to path if it computes what the model does.

    images, labels: real images in the model's input format, for the check. Raises GateRefused with the figures if
    the check fails; then no file is written.
    """
    gate = check_onnx(model, content, images.cpu(), labels.cpu())
    if not gate.passed:
        raise GateRefused(f"{path.name}: the exported file differs from the model: {gate}; no file is written")
    write_whole(path, content)
    return gate


def to_onnx(model: nn.Module, input_shape: tuple[int, ...], metadata: Mapping[str, object]) -> bytes:
    """One self-contained ONNX document with input `images` [n, 3, H, W] float32, any n, and output `logits` [n, C].

    Validated by onnx; each metadata value is stored as JSON.
    """
    model = model.cpu().float().eval()
    example = torch.rand(2, *input_shape)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        path = os.path.join(folder, "student.onnx")
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        document = onnx.load(path)
    graph = document.graph
    named = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, document)
    for part in (*named, *document.functions):
        del part.metadata_props[:]  # they contain names of source files
        part.doc_string = ""
    for key in sorted(metadata):
        document.metadata_props.add(key=key, value=json.dumps(metadata[key], sort_keys=True))
    onnx.checker.check_model(document, full_check=True)
    return bytes(document.SerializeToString(deterministic=True))


def divide_logits(content: bytes, temperature: float) -> bytes:
    """The same document with its logits divided by the temperature; its metadata then says `calibrated`.

    One Div node after the last one: all others stay as they were, and so do the predicted classes. It is no operator
    that is quantised, so an int8 file of this document has it in float32, too.
    """
    document = onnx.load_from_string(content)
    graph = document.graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["raw_logits" if name == "logits" else name for name in names]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(temperature, np.float32), "temperature"))
    graph.node.append(onnx.helper.make_node("Div", ["raw_logits", "temperature"], ["logits"], "calibration"))
    for entry in document.metadata_props:
        if entry.key == "calibrated":
            entry.value = json.dumps(True)
    onnx.checker.check_model(document, full_check=True)
    return bytes(document.SerializeToString(deterministic=True))


def check_onnx(model: nn.Module, content: bytes, images: Tensor, labels: Tensor) -> Gate:
    """Compare the ONNX file in onnxruntime with the model (see `check`)."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return check(model, partial(run_onnx, session), images, labels, TOLERANCE)


def check(
    model: nn.Module,
    run: Callable[[Images], Logits],
    images: Tensor,
    labels: Tensor,
    tolerance: float,
    max_drop: float = 0.0,
) -> Gate:
    """Compare a file, as a function, with the model on the CPU in eval mode, with batches of 1, 7 and 64 images."""
    with torch.no_grad():
        expected: Logits = torch.cat([model(part) for part in images.split(64)]).numpy()
    parts: list[Logits] = []
    start = 0
    for size in (1, 7):
        parts.append(run(images[start : start + size].contiguous().numpy()))
        start += size
    parts += [run(part.contiguous().numpy()) for part in images[start:].split(64)]
    actual = np.concatenate(parts)
    difference = float(np.abs(actual - expected).max())
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * difference
    changed = (actual.argmax(axis=1) != expected.argmax(axis=1)) & clear
    targets = labels.numpy()
    before, after = (float((logits.argmax(axis=1) == targets).mean()) for logits in (expected, actual))
    largest = float(np.abs(expected).max())
    return Gate(difference, largest, int(changed.sum()), (before, after), len(images), tolerance, max_drop)


def run_onnx(session: onnxruntime.InferenceSession, images: Images) -> Logits:
    """The logits [n, C] of an exported file."""
    (logits,) = session.run(["logits"], {"images": images})
    return np.asarray(logits, dtype=np.float32)
