"""The paper's Table 3, as printed, and when a figure of ours is its figure."""

from __future__ import annotations

Shape = tuple[int, int, int]

SHAPES: dict[str, tuple[Shape, int]] = {
    "CIFAR-100": ((3, 32, 32), 100),
    "Tiny-ImageNet": ((3, 64, 64), 200),
}
# (MACs, params) of each architecture on each data set
TABLE_3 = {
    "resnet10-xxs": (("2 M", "13 K"), ("8 M", "15 K")),
    "resnet10-xs": (("3 M", "28 K"), ("12 M", "31 K")),
    "resnet10-s": (("4 M", "84 K"), ("16 M", "90 K")),
    "resnet10-m": (("16 M", "320 K"), ("64 M", "333 K")),
    "resnet10-l": (("64 M", "1.25 M"), ("255 M", "1.28 M")),
    "resnet10": (("253 M", "4.92 M"), ("1013 M", "5 M")),
    "resnet18": (("555 M", "11.22 M"), ("2221 M", "11.27 M")),
    "resnet34": (("1159 M", "21.32 M"), ("4637 M", "21.38 M")),
}


def agrees(value: int, printed: str) -> bool:
    """Whether a printed figure ("4.92 M") is the value, rounded or truncated to as many digits."""
    digits, unit = printed.split()
    step = {"K": 10**3, "M": 10**6}[unit] // 10 ** len(digits.partition(".")[2])
    return int(digits.replace(".", "")) in (value // step, (2 * value + step) // (2 * step))
