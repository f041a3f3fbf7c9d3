"""A run as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from mcd_cli.reporting.model_card import Section
from mcd_cli.reporting.table import Grid

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p, li { max-width: 46rem; } .note { color: #666; margin-top: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { border-bottom: 1.5px solid #888; }
img { max-width: 100%; height: auto; } pre, code { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { background: #f5f5f5; padding: .8rem 1rem; overflow-x: auto; } figure { margin: 1rem 0; }
figcaption { color: #666; font-size: .87rem; max-width: 46rem; }
@media print { body { margin: 0; max-width: none; } h2, figure, table { break-inside: avoid; } }
"""


def to_html(
    title: str, note: str, sections: Sequence[Section], pictures: Mapping[str, tuple[bytes, str]], recipe: str
) -> str:
    """The page. pictures: title -> (SVG, what it shows), placed after the first section; recipe: TOML."""
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(note)}</p>']
    for i, section in enumerate(sections):
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [_block(block) for block in section.blocks]
        if i == 0:
            parts += [_picture(name, svg, shown) for name, (svg, shown) in pictures.items()]
    parts += ["<h2>Recipe</h2>", f"<pre>{escape(recipe)}</pre>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    top = f'<!doctype html>\n<html lang="en">\n<head>{head}\n<style>{STYLE}</style></head>'
    return f"{top}\n<body>\n{body}\n</body></html>\n"


def _block(block: str | tuple[str, ...] | Grid) -> str:
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if not isinstance(block, Grid):
        return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block) + "</ul>"
    head = "".join(f"<th>{escape(cell)}</th>" for cell in block.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _text(text: str) -> str:
    """`code` as in Markdown; everything else is text."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _picture(name: str, svg: bytes, shown: str) -> str:
    source = base64.b64encode(svg).decode()
    image = f'<img alt="{escape(shown)}" src="data:image/svg+xml;base64,{source}">'
    return f"<figure>{image}<figcaption>{escape(name)}: {escape(shown)}</figcaption></figure>"
