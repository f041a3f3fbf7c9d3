"""Reads an image folder: one subfolder per class, optionally inside train, val and test folders."""

from __future__ import annotations

import numpy as np

from mcd_cli.data import splits
from mcd_cli.data.dataset import Decoded, Request
from mcd_cli.data.images import decode
from mcd_cli.data.listing import File, Listing, Walk, check_text
from mcd_cli.data.splits import Part
from mcd_cli.errors import UserError

# Matched regardless of case.
PART_NAMES = {
    "train": Part.TRAIN, "training": Part.TRAIN,
    "val": Part.VAL, "valid": Part.VAL, "validation": Part.VAL,
    "test": Part.TEST, "testing": Part.TEST,
}  # fmt: skip


def read(request: Request) -> Decoded:
    """Read an image folder. Classes are its subfolders, sorted by name; nested folders belong to their class.

    Folders named train, val and test are the splits. If only one of val and test exists beside train, it is the test
    set and val is taken from train. If there are only class folders, or only a train folder, they are split 80/10/10.
    """
    return decode(listing(request), request)


def listing(request: Request) -> Listing:
    """The folder's image files with their classes and parts. Raises UserError if the layout is not as in `read`."""
    assert request.root is not None
    walk = Walk(request.root)
    folders = part_folders(walk, request)
    where = str(request.root)
    placed: list[tuple[Part, str, File]] = []
    for part, folder in sorted(folders.items()):
        names = walk.subfolders(folder)
        loose = walk.images(folder, deep=False)
        if loose:
            raise UserError(f"image {loose[0].path!r} in {where!r} is not in a class folder; move it into one")
        if not names and part != Part.ANY:
            raise UserError(f"folder {folder + '/'!r} in {where!r} has no class folders; add one per class")
        for name in names:
            check_text(name, where)
            files = walk.images(f"{folder}/{name}" if folder else name)
            if not files:
                raise UserError(
                    f"class folder {name!r} in {where + '/' + folder!r} has no images; add some or remove it"
                )
            placed += [(part, name, file) for file in files]
    train_parts = (Part.TRAIN, Part.ANY)
    classes = tuple(sorted({name for part, name, _ in placed if part in train_parts}))
    for part, name, _ in placed:
        if part not in train_parts and name not in classes:
            raise UserError(f"class {name!r} of {folders[part]}/ in {where!r} is missing from train/; add or rename it")
    if walk.ignored:
        first = ", ".join(repr(path) for path in walk.ignored[:3])
        request.report(f"ignored {len(walk.ignored)} files without an image suffix: {first}")
    index = {name: label for label, name in enumerate(classes)}
    labels = np.array([index[name] for _, name, _ in placed], dtype=np.int64)
    parts = np.array([part for part, _, _ in placed], dtype=np.uint8)
    if not classes:
        raise UserError(f"{where!r} has no class folders with images; it needs one subfolder per class")
    if len(classes) == 1:
        below = request.root / (folders.get(Part.TRAIN) or folders.get(Part.ANY) or "") / classes[0]
        if Walk(below).subfolders():
            raise UserError(f"{where!r} has only one folder, so only one class; did you mean {str(below)!r}?")
    splits.check(labels, parts, classes)
    return Listing(request.root, classes, [file for _, _, file in placed], labels, parts)


def part_folders(walk: Walk, request: Request) -> dict[Part, str]:
    """The folder of each part; {ANY: ""} if there are only class folders.

    "train" can also be the name of a class: it is a class if there are other folders beside it, unless it contains
    only folders and a val or test folder exists as well.
    """
    where = str(walk.root)
    names = walk.subfolders()
    named: dict[Part, str] = {}
    for name in names:
        part = PART_NAMES.get(name.lower())
        if part is not None and named.setdefault(part, name) != name:
            raise UserError(f"{where!r} has both {named[part]}/ and {name}/; keep one")
    unnamed = [name for name in names if name not in named.values()]
    if Part.TRAIN not in named:
        if named and not unnamed:
            raise UserError(f"{where!r} has {' and '.join(sorted(named.values()))} but no train folder; add one")
        return {Part.ANY: ""}
    train = named[Part.TRAIN]
    if unnamed:
        if len(named) == 1 or walk.images(train, deep=False):
            return {Part.ANY: ""}
        request.report(f"using {', '.join(sorted(named.values()))}; ignoring the other folders: {', '.join(unnamed)}")
    if len(named) == 1:
        return {Part.ANY: train}
    if len(named) == 2:
        held_out = named.get(Part.TEST) or named[Part.VAL]
        return {Part.TRAIN: train, Part.TEST: held_out}
    return named
