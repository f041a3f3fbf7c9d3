"""An ONNX file as a frozen teacher, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mcd_cli.errors import UserError, reason_of

LARGEST = 4096  # images in a fixed batch, or pixels per side
LOOPS = {"Loop", "Scan", "SequenceMap"}
SPARE_BYTES = 4 * 2**30  # memory allowed for loading a graph, in addition to eight times its file size
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxTeacher(nn.Module):
    """Normalised images [n, 3, H, W], float32 on any device → logits [n, num_classes] on the same device.

    A graph with a fixed batch size gets chunks of that size; the last chunk is padded. Raises UserError for a damaged
    file, and for a graph that does not classify RGB images or that returns probabilities.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.has_run = False
        try:
            document = onnx.load(str(path), format="protobuf", load_external_data=False)
        except Exception as error:  # protobuf's and onnx's exceptions have no common base class
            raise UserError(f"teacher {path} is not a valid ONNX file: {reason_of(error)}; export it again") from None
        graph = document.graph
        if reason := _forbidden(document, path.parent):
            raise self._refused(reason)
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # failures raise exceptions; onnxruntime must not write to stderr
            options.intra_op_num_threads = torch.get_num_threads()
            with _limited_memory(path.stat().st_size):
                self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise UserError(f"onnxruntime cannot run teacher {path}: {reason_of(error)}; export it again") from None
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if not outputs:
            raise self._refused("it has no output")
        output = outputs[0]
        if len(inputs) != 1 or inputs[0].type not in FLOATS or len(inputs[0].shape) != 4:
            raise self._refused(f"its input is {_spoken(inputs)}, not one batch of float images [n, 3, H, W]")
        self.input, self.output = inputs[0].name, output.name
        self.dtype = FLOATS[inputs[0].type]
        batch, channels, height, width = (d if isinstance(d, int) else None for d in inputs[0].shape)
        if any(d is not None and not 0 < d <= LARGEST for d in (batch, height, width)):
            raise self._refused(
                f"its input is {inputs[0].shape}; batch, height and width must be between 1 and {LARGEST}"
            )
        if channels not in (3, None):
            raise self._refused(f"its input is {inputs[0].shape}, not [n, 3, H, W]")
        if any(node.op_type == "Softmax" and output.name in node.output for node in graph.node):
            raise self._refused("it ends with a Softmax; export it without, so that it returns logits")
        self.batch, self.size = batch, (height, width)
        self.num_classes = self._count_classes(output)

    def _refused(self, reason: str) -> UserError:
        return UserError(f"ONNX teacher {self.path} cannot be used: {reason}")

    def _count_classes(self, output: Any) -> int:
        if len(output.shape) == 2 and isinstance(output.shape[1], int):
            return output.shape[1]
        height, width = (side or 32 for side in self.size)
        image = np.zeros((self.batch or 1, 3, height, width), np.float32)
        shape = self._run(image).shape
        if len(shape) != 2 or shape[0] != (self.batch or 1):
            raise self._refused(f"its first output {output.name} has shape {list(shape)}, not [n, classes]")
        return int(shape[1])

    def _run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        is_first, self.has_run = not self.has_run, True
        try:
            with _limited_memory(self.path.stat().st_size + images.nbytes) if is_first else nullcontext():
                outputs = self.session.run([self.output], {self.input: images.astype(self.dtype)})
            logits: np.ndarray[Any, Any] = outputs[0]
        except Exception as error:  # as above
            raise self._refused(f"it fails for images {list(images.shape)}: {reason_of(error)}") from None
        return logits

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.size[0] not in (height, None) or self.size[1] not in (width, None):
            raise self._refused(
                f"it takes {self.size[0]}×{self.size[1]} images, but the data set has {height}×{width}; "
                "set --image-size"
            )
        images = x.detach().to("cpu", torch.float32).contiguous().numpy()
        size = self.batch or max(len(images), 1)
        parts = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            padded = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
            parts.append(self._run(padded)[: len(chunk)])
        logits = np.concatenate(parts).astype(np.float32)
        if logits.shape != (len(images), self.num_classes):
            raise self._refused(f"for {len(images)} images its output has shape {list(logits.shape)}")
        return torch.from_numpy(logits).to(x.device)


def _forbidden(document: onnx.ModelProto, folder: Path) -> str:
    """Why the graph is not a plain network, or "" if it is. An ONNX file is a program, and it could run forever."""
    pending: list[Any] = [document.graph, *document.functions]
    while pending:
        part = pending.pop()
        for node in part.node:
            if node.op_type in LOOPS:
                return f"it contains a {node.op_type}, which no classifier needs"
            for attribute in node.attribute:
                pending += [attribute.g] * attribute.HasField("g") + list(attribute.graphs)
    for tensor in onnx.external_data_helper._get_all_tensors(document):
        for entry in tensor.external_data:
            if entry.key == "location" and not (folder / entry.value).resolve().is_relative_to(folder.resolve()):
                return f"its weights are outside of its folder ({entry.value!r})"
    return ""


@contextmanager
def _limited_memory(num_bytes: int) -> Iterator[None]:
    """Limits the memory of this process: a graph of a few bytes can request any amount, which must then fail early."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = now + 8 * num_bytes + SPARE_BYTES
        if soft != resource.RLIM_INFINITY:
            limit = min(limit, soft)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):  # not Linux
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _spoken(inputs: list[Any]) -> str:
    return ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "missing"
