"""A student as one ONNX file, kept only when onnxruntime computes what the float32 model computes."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mcd_cli.errors import GateRefused
from mcd_cli.files import write_whole

TOLERANCE = 1e-4  # of the largest logit

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Gate:
    """How far the file is from the model on real images: logits, and top-1 where it is no tie."""

    difference: float  # largest absolute difference of a logit
    largest: float  # largest absolute logit
    changed: int  # images whose top-1 differs and whose margin is more than twice the difference
    accuracy: tuple[float, float]  # the model's and the file's
    num_images: int

    @property
    def passed(self) -> bool:
        alike = self.difference <= TOLERANCE * self.largest and self.changed == 0
        return alike and self.accuracy[0] == self.accuracy[1]

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.difference:.1e} of {self.largest:.1f}, "
            f"{self.changed} of {self.num_images} top-1 changed, "
            f"accuracy {self.accuracy[1]:.2%} for {self.accuracy[0]:.2%}"
        )


def export_onnx(model: nn.Module, images: Tensor, labels: Tensor, path: Path, metadata: Mapping[str, object]) -> Gate:
    """Write path: input `images` [n, 3, H, W] float32, n free; output `logits` [n, C].

    images, labels: real ones, as the model takes them, on which the gate judges. Raises GateRefused, with the
    figures; no file is written.
    """
    model = model.cpu().float().eval()
    content = to_onnx(model, tuple(images.shape[1:]), metadata)
    gate = check_onnx(model, content, images.cpu(), labels.cpu())
    if not gate.passed:
        raise GateRefused(f"{path.name}: the exported file differs from the model ({gate}); no file is written")
    write_whole(path, content)
    return gate


def to_onnx(model: nn.Module, input_shape: tuple[int, ...], metadata: Mapping[str, object]) -> bytes:
    """One self-contained ONNX document, checked by onnx, with the metadata as JSON texts."""
    example = torch.rand(2, *input_shape)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporter's own notes on its internals
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
        del part.metadata_props[:]  # they name source files
        part.doc_string = ""
    for key in sorted(metadata):
        document.metadata_props.add(key=key, value=json.dumps(metadata[key], sort_keys=True))
    onnx.checker.check_model(document, full_check=True)
    return bytes(document.SerializeToString(deterministic=True))


def check_onnx(model: nn.Module, content: bytes, images: Tensor, labels: Tensor) -> Gate:
    """Every image in batches of 1, 7 and 64 through onnxruntime, against the model on the CPU in eval mode."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected: Logits = torch.cat([model(part) for part in images.split(64)]).numpy()
    parts: list[Logits] = []
    start = 0
    for size in (1, 7):
        parts.append(_run(session, images[start : start + size]))
        start += size
    parts += [_run(session, part) for part in images[start:].split(64)]
    found = np.concatenate(parts)
    difference = float(np.abs(found - expected).max())
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * difference
    changed = (found.argmax(axis=1) != expected.argmax(axis=1)) & clear
    right = labels.numpy()
    accuracy = tuple(float((logits.argmax(axis=1) == right).mean()) for logits in (expected, found))
    return Gate(difference, float(np.abs(expected).max()), int(changed.sum()), (accuracy[0], accuracy[1]), len(images))


def _run(session: onnxruntime.InferenceSession, images: Tensor) -> Logits:
    (logits,) = session.run(["logits"], {"images": images.contiguous().numpy()})
    return np.asarray(logits, dtype=np.float32)
