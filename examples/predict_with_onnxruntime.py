"""Run an exported student as on a device, with only onnxruntime, numpy and the ONNX file: no torch, no mcd.

Train on the digits (`mcd distill --dataset digits`) and run `mcd export` first, then
`python examples/predict_with_onnxruntime.py "$(mcd select --quiet --print onnx)"`
"""

import json
import sys

import numpy as np
import onnxruntime
from sklearn.datasets import load_digits


def main(path: str) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    _, height, width = about["input_shape"]

    digits = load_digits()  # 8×8 pixels, 0 to 16
    grey = digits.images.repeat(height // 8, axis=1).repeat(width // 8, axis=2) / 16
    images = np.repeat(grey[:, None], 3, axis=1).astype(np.float32)  # RGB [n, 3, H, W] in [0, 1]

    (logits,) = session.run(["logits"], {"images": images})
    predicted = logits.argmax(axis=1)
    for i in range(5):
        print(f"image {i}: {about['classes'][predicted[i]]}, labelled {digits.target[i]}")
    # the student was trained on most of these images; `mcd distill` prints the accuracy on unseen ones
    print(f"{(predicted == digits.target).mean():.1%} of all {len(images):,} digits")


if __name__ == "__main__":
    main(sys.argv[1])
