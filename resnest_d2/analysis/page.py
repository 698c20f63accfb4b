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

DPI = 95
PLAIN = {"text.parse_math": False}  # names of classes may have $, where formulas would begin
_PAGE = Path(__file__).with_suffix(".html")


def write_page(file: Path, title: str, lead: str, sections: Sequence[tuple[str, str]]) -> Path:
    """Write a page with a table of contents; the folder is made if need be.

    Args:
        file: its path, which is returned.
        title: text of the heading.
        lead: text of the first paragraph.
        sections: headings as text, with what stands below them in HTML.
    """
    title, lead, *titles = map(html.escape, (title, lead, *(heading for heading, _ in sections)))
    links = "".join(f'<a href="#s{i}">{heading}</a>' for i, heading in enumerate(titles))
    body = "\n".join(
        f'<h2 id="s{i}">{heading}</h2>\n{below}'
        for i, (heading, (_, below)) in enumerate(zip(titles, sections, strict=True))
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    page = Template(_PAGE.read_text(encoding="utf-8"))
    write_text(file, page.substitute(title=title, lead=lead, contents=links, body=body))
    return file


def number(value: Any, form: str = ".1f") -> str:
    """Write a floating-point number in a format, None as "n/a", anything else as text."""
    if value is None:
        return "n/a"
    return format(value, form) if isinstance(value, float) else str(value)


def paragraph(text: str) -> str:
    """Return a paragraph of text."""
    return f"<p>{html.escape(text)}</p>"


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table, which scrolls if it is long; columns of numbers are aligned to the right."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headers)
    lines = []
    for row in rows:
        texts = [number(value) for value in row]
        kinds = ("number" if t == "n/a" or t.lstrip("+-")[:1].isdigit() else "text" for t in texts)
        cells = zip(kinds, map(html.escape, texts), strict=True)
        lines.append(f"<tr>{''.join(f'<td class={k}>{t}</td>' for k, t in cells)}</tr>\n")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def chart(text: str, draw: Callable[..., tuple[Any, Any]], *args: Any, **options: Any) -> str:
    """Return a chart as a picture.

    Args:
        text: what it shows, for those who cannot see it.
        draw: a function, of hotcoco.plot for example, that returns Matplotlib's figure and axes.
        args: of the function.
        options: of the function.

    Raises:
        ImportError: as :func:`import_to_draw`.
    """
    pyplot, stream = import_to_draw("matplotlib.pyplot"), io.BytesIO()
    with pyplot.rc_context(PLAIN):
        figure, _ = draw(*args, **options)
        figure.savefig(stream, format="png", dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)
    return _image(stream, "png", text)


def picture(image: np.ndarray, caption: str) -> str:
    """Return a picture, shape (H, W, 3), uint8, RGB, with a caption."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=85)
    shown = _image(stream, "jpeg", caption)
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(stream: io.BytesIO, kind: str, text: str) -> str:
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{content}">'
