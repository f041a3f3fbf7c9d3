"""An ONNX file as a frozen network, run by onnxruntime on the CPU."""

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

LARGEST = 4096  # images of a fixed batch, or pixels of a side
LOOPS = {"Loop", "Scan", "SequenceMap"}
SPARE_BYTES = 4 * 2**30  # of memory that reading a graph may take, besides eight times its file
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxTeacher(nn.Module):
    """Normalised images [n, 3, H, W], float32 on any device → logits [n, num_classes] on the same device.

    A graph with a fixed batch gets chunks of that many images, the last one filled up. Raises UserError for a
    damaged file, and for a graph that is no classifier of RGB images or that returns probabilities.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.has_run = False
        try:
            document = onnx.load(str(path), format="protobuf", load_external_data=False)
        except Exception as error:  # protobuf's and onnx's have no common base
            raise UserError(f"teacher {path} is no ONNX file that can be run: {reason_of(error)}") from None
        graph = document.graph
        if why := _forbidden(document, path.parent):
            raise self._refused(why)
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # its failures come as exceptions; stderr is ours
            options.intra_op_num_threads = torch.get_num_threads()
            with _limited_memory(path.stat().st_size):
                self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise UserError(f"teacher {path} is no ONNX file that can be run: {reason_of(error)}") from None
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if not outputs:
            raise self._refused("it has no output")
        output = outputs[0]
        if len(inputs) != 1 or inputs[0].type not in FLOATS or len(inputs[0].shape) != 4:
            raise self._refused(f"it takes {_spoken(inputs)}, not one batch of float images [n, 3, H, W]")
        self.input, self.output = inputs[0].name, output.name
        self.dtype = FLOATS[inputs[0].type]
        batch, channels, height, width = (d if isinstance(d, int) else None for d in inputs[0].shape)
        if any(d is not None and not 0 < d <= LARGEST for d in (batch, height, width)):
            raise self._refused(
                f"it takes images {inputs[0].shape}; batch, height and width must lie in 1 to {LARGEST}"
            )
        if channels not in (3, None):
            raise self._refused(f"it takes images {inputs[0].shape}, not [n, 3, H, W]")
        if any(node.op_type == "Softmax" and output.name in node.output for node in graph.node):
            raise self._refused("it ends in a Softmax; export it without, so that it returns logits")
        self.batch, self.size = batch, (height, width)
        self.num_classes = self._count_classes(output)

    def _refused(self, why: str) -> UserError:
        return UserError(f"ONNX teacher {self.path} cannot be used: {why}")

    def _count_classes(self, output: Any) -> int:
        if len(output.shape) == 2 and isinstance(output.shape[1], int):
            return output.shape[1]
        height, width = (side or 32 for side in self.size)
        image = np.zeros((self.batch or 1, 3, height, width), np.float32)
        shape = self._run(image).shape
        if len(shape) != 2 or shape[0] != (self.batch or 1):
            raise self._refused(f"its first output {output.name} is {list(shape)}, not logits [n, classes]")
        return int(shape[1])

    def _run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        first, self.has_run = not self.has_run, True
        try:
            with _limited_memory(self.path.stat().st_size + images.nbytes) if first else nullcontext():
                found = self.session.run([self.output], {self.input: images.astype(self.dtype)})
            logits: np.ndarray[Any, Any] = found[0]
        except Exception as error:  # as above
            raise self._refused(f"images {list(images.shape)} made it fail: {reason_of(error)}") from None
        return logits

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.size[0] not in (height, None) or self.size[1] not in (width, None):
            raise self._refused(f"it takes {self.size[0]}×{self.size[1]} images, the data set has {height}×{width}")
        images = x.detach().to("cpu", torch.float32).contiguous().numpy()
        size = self.batch or max(len(images), 1)
        parts = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            filled = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
            parts.append(self._run(filled)[: len(chunk)])
        logits = np.concatenate(parts).astype(np.float32)
        if logits.shape != (len(images), self.num_classes):
            raise self._refused(f"{len(images)} images gave {list(logits.shape)} logits")
        return torch.from_numpy(logits).to(x.device)


def _forbidden(document: onnx.ModelProto, folder: Path) -> str:
    """Why the graph is no plain network: a file is a program, and a program may run for ever. Empty where it is."""
    pending: list[Any] = [document.graph, *document.functions]
    while pending:
        part = pending.pop()
        for node in part.node:
            if node.op_type in LOOPS:
                return f"it has a {node.op_type}; a classifier needs none"
            for attribute in node.attribute:
                pending += [attribute.g] * attribute.HasField("g") + list(attribute.graphs)
    for tensor in onnx.external_data_helper._get_all_tensors(document):
        for entry in tensor.external_data:
            if entry.key == "location" and not (folder / entry.value).resolve().is_relative_to(folder.resolve()):
                return f"its weights lie outside of its folder ({entry.value!r})"
    return ""


@contextmanager
def _limited_memory(num_bytes: int) -> Iterator[None]:
    """A graph of a few bytes can ask for any memory: inside, what is too much fails instead of filling the machine."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = now + 8 * num_bytes + SPARE_BYTES
        if soft != resource.RLIM_INFINITY:
            most = min(most, soft)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (ImportError, OSError, ValueError):  # not Linux
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _spoken(inputs: list[Any]) -> str:
    return ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "no input"
