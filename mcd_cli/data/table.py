"""Reads a CSV, TSV or JSONL file with a path, a label and perhaps a split per line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from mcd_cli.data import splits
from mcd_cli.data.dataset import Decoded, Request
from mcd_cli.data.folder import PART_NAMES
from mcd_cli.data.images import decode
from mcd_cli.data.listing import File, Listing, check_text, file_at
from mcd_cli.data.splits import Part
from mcd_cli.errors import UserError, reason_of

# The usual names of columns, matched regardless of case; the first that the file has is taken.
PATHS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path", "img")
LABELS = ("label", "class", "target", "category", "class_name", "y")
SPLITS = ("split", "part", "subset", "fold", "set")

Row = tuple[int, Mapping[str, str]]  # its line, and its values by column


def read(request: Request, columns: Sequence[str] = ()) -> Decoded:
    """Read the table `request.root`; paths are relative to its folder. columns: of paths, labels and splits, if given.

    Classes are the labels, in the order of their numbers or of the alphabet. Without a column of splits, or with train
    only, images are split 80/10/10; with train and one other part, that is the test set, as in an image folder.
    """
    return decode(listing(request, columns), request)


def listing(request: Request, columns: Sequence[str] = ()) -> Listing:
    """The table's files with their classes and parts. Raises UserError, naming the line, for what is wrong."""
    table = request.root
    assert table is not None
    rows = list(_rows(table))
    if not rows:
        raise UserError(f"{table} has no lines of data")
    path_column, label_column, split_column = _columns(table, list(rows[0][1]), columns)
    of_splits = f", splits {split_column!r}" if split_column else ""
    request.report(f"{table.name}: paths from the column {path_column!r}, labels {label_column!r}{of_splits}")
    files, names, parts = [], [], []
    for line, row in rows:
        files.append(_file(table, line, row.get(path_column) or ""))
        names.append(_label(table, line, row.get(label_column)))
        parts.append(_part(table, line, row.get(split_column) or "") if split_column else Part.ANY)
    classes = tuple(sorted(set(names), key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))
    index = {name: label for label, name in enumerate(classes)}
    labels = np.array([index[name] for name in names], dtype=np.int64)
    placed = np.array(_as_folders(table, parts), dtype=np.uint8)
    splits.check(labels, placed, classes)
    return Listing(table.parent, classes, files, labels, placed)


def _rows(table: Path) -> Iterator[Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix.lower() == ".jsonl":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield line, _object(table, line, text)
                return
            reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",", restval="")
            for row in reader:
                if None in row:
                    raise UserError(f"{table}, line {reader.line_num}: more values than columns")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read ({reason_of(error)}); it must be text in UTF-8") from None


def _object(table: Path, line: int, text: str) -> Mapping[str, str]:
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{table}, line {line}: {reason_of(error)}; each line must be a JSON object") from None
    return {key: item if isinstance(item, str) else json.dumps(item) for key, item in value.items()}


def _columns(table: Path, found: Sequence[str], given: Sequence[str]) -> tuple[str, str, str | None]:
    lowered = {name.lower(): name for name in found}

    def named(kind: str, usual: Sequence[str], position: int) -> str | None:
        if position < len(given):
            if given[position] not in found:
                raise UserError(f"{table} has no column {given[position]!r}; it has {_shown(found)}")
            return given[position]
        return next((lowered[name] for name in usual if name in lowered), None)

    path, label = named("paths", PATHS, 0), named("labels", LABELS, 1)
    if path is None or label is None:
        missing = "paths" if path is None else "labels"
        raise UserError(
            f"which column of {table} has the {missing}? It has {_shown(found)}; "
            f"name them: --dataset {table}:PATH,LABEL or :PATH,LABEL,SPLIT"
        )
    return path, label, named("splits", SPLITS, 2)


def _shown(found: Sequence[str]) -> str:
    return ", ".join(map(repr, islice(found, 8))) + (", …" if len(found) > 8 else "")


def _file(table: Path, line: int, path: str) -> File:
    file = File(path, -1, 0) if "\0" in path else file_at(table.parent / path, path)
    if file.size < 0:
        raise UserError(f"{table}, line {line}: there is no image {path!r}; paths are relative to its folder")
    return file


def _label(table: Path, line: int, label: str | None) -> str:
    if not label:
        raise UserError(f"{table}, line {line}: the label is empty")
    check_text(label, str(table))
    return label


def _part(table: Path, line: int, split: str) -> Part:
    part = PART_NAMES.get(split.lower())
    if part is None:
        raise UserError(f"{table}, line {line}: split {split!r} is none of train, val and test")
    return part


def _as_folders(table: Path, parts: Sequence[Part]) -> list[Part]:
    """The same rules as for folders: only train is split, and a single other part is the test set."""
    present = set(parts)
    if present == {Part.TRAIN}:
        return [Part.ANY] * len(parts)
    if Part.ANY not in present and Part.TRAIN not in present:
        raise UserError(f"{table} has no images of the split train")
    if present == {Part.TRAIN, Part.VAL}:
        return [Part.TEST if part == Part.VAL else part for part in parts]
    return list(parts)
