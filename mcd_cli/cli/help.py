"""Help pages: the options of a command under headings, as wide as the terminal."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

WIDEST = 10_000  # columns; help is as wide as the terminal
OTHERS = "Options"

GROUPS = {
    "Recipe": "recipe settings method methods overlays seed seeds epochs batch_size",
    "Data": "dataset data_root image_size skip_bad_images",
    "Teacher and students": "teacher teacher_arch teacher_norm students force",
    "Budget": "max_macs max_params max_size max_latency min_accuracy within by percentile",
    OTHERS: "",
    "Hardware": "device precision threads max_memory sync_bn fast eager",
    "Folders": "out resume checkpoint_every dry_run beside",
    "Output": "json_output quiet debug help",
}
"""Heading → the names of the parameters under it; a parameter that is nowhere goes under `OTHERS`."""


class GroupedHelp(TyperCommand):
    """A command whose help page has headings, in plain text: nothing is imported for it."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        of = {name: heading for heading, names in GROUPS.items() for name in names.split()}
        pages: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{heading: [] for heading in GROUPS}}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name, text = record
                record = re.sub(r" <.*>$", "", name), re.sub(r"\[default: \(([^)]*)\)", r"[default: \1", text)
                is_argument = parameter.param_type_name == "argument"
                pages["Arguments" if is_argument else of.get(parameter.name or "", OTHERS)].append(record)
        for heading, records in pages.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
