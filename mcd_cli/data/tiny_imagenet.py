"""Tiny-ImageNet in its original layout: 200 classes of ImageNet at 64x64 pixels.

Training images are in train/<wnid>/images/. The official val/, which has labels, is the test set; our val is split off
from train. The official test/ has no labels and is not read.
Y. Le, X. Yang: Tiny ImageNet Visual Recognition Challenge, 2015.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from mcd_cli.data import images, splits
from mcd_cli.data.archive import unpacked
from mcd_cli.data.dataset import Decoded, Request
from mcd_cli.data.download import Download, downloads, fetch
from mcd_cli.data.listing import File, Listing, Walk, check_text
from mcd_cli.data.splits import Part
from mcd_cli.errors import UserError
from mcd_cli.files import read_small

DOWNLOAD = Download(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
)
FOLDER = "tiny-imagenet-200"
SIDE = 64
MAX_BYTES = 2**27  # in a text file; the official words.txt has 2.7 MB
NORM = ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))


def read(request: Request) -> Decoded:
    """Read the data set, or a subset in the same layout; classes are ordered by wnid.

    The data root may be the data set's folder, its parent folder, or the zip file; otherwise raises UserError.
    """
    side = request.image_size or SIDE
    decoded = images.decode(listing(find(request)), replace(request, image_size=side))
    return replace(decoded, norm=NORM)


def find(request: Request) -> Path:
    """The folder with train/ and val/; without a data root, it is downloaded if necessary."""
    root = downloads() if request.root is None else request.root
    archive = root if root.is_file() else root / DOWNLOAD.name
    for place in (root, root / FOLDER):
        if (place / "train").is_dir():
            return place
    if not archive.is_file():
        if request.root is not None:
            raise UserError(
                f"no Tiny-ImageNet in {str(root)!r}; put {DOWNLOAD.name} there, or omit the data root to download it"
            )
        archive = fetch(DOWNLOAD, request.report)
    place = unpacked(archive, request.report) / FOLDER
    if not (place / "train").is_dir():
        raise UserError(f"archive {str(archive)!r} does not contain {FOLDER}/train; give the official archive")
    return place


def listing(root: Path) -> Listing:
    """The data set's image files. Raises UserError for a validation image without a label or with an unknown class."""
    walk = Walk(root)
    wnids = walk.subfolders("train")
    index = {wnid: label for label, wnid in enumerate(wnids)}
    placed: list[tuple[Part, str, File]] = []
    for wnid in wnids:
        check_text(wnid, str(root / "train"))
        placed += [(Part.TRAIN, wnid, file) for file in walk.images(f"train/{wnid}")]
    labelled = _annotations(root)
    for file in walk.images("val"):
        name = Path(file.path).name
        wnid = labelled.get(name, "")
        if wnid not in index:
            why = (
                f"is of class {wnid!r}, which has no folder in train/" if wnid else "has no line in val_annotations.txt"
            )
            raise UserError(f"validation image {name!r} in {str(root)!r} {why}")
        placed.append((Part.TEST, wnid, file))
    labels = np.array([index[wnid] for _, wnid, _ in placed], dtype=np.int64)
    parts = np.array([part for part, _, _ in placed], dtype=np.uint8)
    if not (parts == Part.TEST).any():
        raise UserError(f"no images in {str(root / 'val')!r}, which is the test set; unpack the archive again")
    classes = _names(root, wnids)
    splits.check(labels, parts, classes)
    return Listing(root, classes, [file for _, _, file in placed], labels, parts)


def _annotations(root: Path) -> dict[str, str]:
    """File name -> wnid, from val_annotations.txt: name, wnid and a box, separated by tabs."""
    path = root / "val" / "val_annotations.txt"
    try:
        lines = read_small(path, MAX_BYTES).decode().splitlines()
        return {name: wnid for name, wnid, *_ in (line.split("\t") for line in lines if line.strip())}
    except OSError as error:
        raise UserError(f"cannot read the labels of the test set, {str(path)!r}: {error.strerror or error}") from error
    except ValueError:
        raise UserError(
            f"{str(path)!r} is damaged: each line must have a file name and a wnid, separated by tabs; restore it"
        ) from None


def _names(root: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first synonym of each wnid, with the wnid appended to duplicates; without words.txt, the wnids themselves."""
    path = root / "words.txt"
    if not path.is_file():
        return tuple(wnids)
    words = {}
    try:
        lines = read_small(path, MAX_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the names of the classes, {str(path)!r}: {error.strerror or error}") from error
    for line in lines:
        wnid, _, synonyms = line.partition("\t")
        words[wnid] = synonyms.split(",")[0].strip()
    names = [words.get(wnid) or wnid for wnid in wnids]
    shared = Counter(names)
    return tuple(name if shared[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))
