"""A manifest of two students, written by hand and not by the code under test, and a run's files of an older mcd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden")
"""ladder.json, metrics.jsonl and comparison.json, from before each was a dataclass that pydantic reads."""

COST = {"params": 1000, "macs": 100_000, "bytes": 5000}
SCORE = {"ce": 0.5, "last": 0.6, "val": 0.7, "test": 0.7, "gain_p": 0.01}
TIMING = {"format": "onnx", "batch": 1, "p50_ms": 1.5, "p90_ms": 2.0, "p99_ms": 3.5, "warmup": 20, "runs": 200}
RAW, SCALED = ({part: {"nll": nll, "ece": nll / 8} for part in ("val", "test")} for nll in (1.0, 0.5))
MANIFEST: dict[str, Any] = {
    "schema": 1,
    "version": "0.1.0",
    "created": "2026-01-02T03:04:05+00:00",
    "dataset": {
        "name": "toy", "classes": ["a", "b"], "input_shape": [3, 16, 16], "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "split_seed": 0, "fingerprint": "f", "sizes": {"train": 8, "val": 1, "test": 1},
    },
    "teacher": {"arch": "resnet10-s", "sha256": "a" * 64, "norm": "half", "accuracy": {"val": 0.9, "test": 0.9}},
    "method": "mc-distil", "recipe_sha256": "b" * 64, "seed": 0, "device": "cpu", "hardware": {"threads": 1},
    "students": [
        {"name": name, "arch": "resnet10-xxxs", "weights": f"students/{name}.safetensors", "sha256": "0" * 64, **COST,
         "accuracy": SCORE, "latency": {"cpu": [TIMING]}, "exports": {"onnx": f"exports/{name}.onnx"},
         "calibration": {"temperature": 2.0, "raw": RAW, "scaled": SCALED}}
        for name in ("m", "s")
    ],
}  # fmt: skip
