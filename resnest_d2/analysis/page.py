"""Pages of HTML in one file: styles and pictures are inside, and nothing is loaded."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_text
from ..inference.drawing import import_to_draw

DPI = 110
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
nav { columns: 3 16rem; } nav a { display: block; }
a { color: #1a4f8b; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right;
         font-variant-numeric: tabular-nums; }
th { background: #f3f3f3; position: sticky; top: 0; }
th:first-child, td:first-child, .text td, .text th { text-align: left; }
.scroll { max-height: 40rem; overflow: auto; display: inline-block; max-width: 100%; }
img { max-width: 100%; height: auto; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; }
figcaption { font-size: .9rem; }
</style></head><body>
<h1>$title</h1>
<p>$lead</p>
<nav aria-label="Contents">$contents</nav>
$body
</body></html>
""")


class Page:
    """A page that grows by sections, each with an entry in the table of contents.

    Args:
        title: text of its heading.
        lead: text of its first paragraph.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self.sections: list[tuple[str, str]] = []

    def add(self, title: str, *parts: str) -> None:
        """Add a section of parts in HTML."""
        self.sections.append((title, "\n".join(parts)))

    def write(self, file: Path) -> Path:
        """Write the page; the folder is made if need be."""
        titles = [html.escape(title) for title, _ in self.sections]
        file.parent.mkdir(parents=True, exist_ok=True)
        text = _PAGE.substitute(
            title=html.escape(self.title),
            lead=html.escape(self.lead),
            contents="".join(f'<a href="#s{i}">{title}</a>' for i, title in enumerate(titles)),
            body="\n".join(
                f'<h2 id="s{i}">{title}</h2>\n{body}'
                for i, (title, (_, body)) in enumerate(zip(titles, self.sections, strict=True))
            ),
        )
        write_text(file, text)
        return file


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def number(value: Any, digits: int = 1, sign: str = "") -> str:
    """Write a number with so many decimals, "n/a" for None, anything else as text."""
    if value is None:
        return "n/a"
    return f"{value:{sign}.{digits}f}" if isinstance(value, float) else str(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], of_text: bool = False) -> str:
    """Return a table, which scrolls if it is long; numbers have one decimal."""

    def cells(tag: str, values: Sequence[Any]) -> str:
        return "".join(f"<{tag}>{html.escape(number(value))}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    kind = ' class="text"' if of_text else ""
    head = f"<thead><tr>{cells('th', headers)}</tr></thead>"
    return f'<div class="scroll"><table{kind}>{head}\n<tbody>{body}</tbody></table></div>'


def chart(text: str, draw: Callable[..., tuple[Any, Any]], *args: Any, **options: Any) -> str:
    """Return a chart of ``hotcoco.plot`` as a picture.

    Args:
        text: what it shows, for those who cannot see it.
        draw: a function that returns a figure of Matplotlib and its axes.
        args: of the function.
        options: of the function.

    Raises:
        ImportError: as :func:`import_to_draw`.
    """
    pyplot = import_to_draw("matplotlib.pyplot")
    figure, _ = draw(*args, **options)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)
    return _image(stream.getvalue(), "png", text)


def picture(image: np.ndarray, caption: str) -> str:
    """Return a picture, shape (H, W, 3), uint8, RGB, with a caption."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=85)
    shown = _image(stream.getvalue(), "jpeg", caption)
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(content: bytes, kind: str, text: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{data}">'
