"""How much a table or a formula that a completion writes looks like the picture that it was read from."""

from __future__ import annotations

import io
import math
import re
from html import unescape
from typing import Any, Literal, NamedTuple

from mmalign.arguments.columns import Column
from mmalign.media import Broken, Limits, picture
from mmalign.rewards._shared.completions import texts
from mmalign.rewards._shared.scorer import Scorer, column_of
from mmalign.types import UserError

CELLS, LETTERS, SIDE, LARGEST = (
    4096,
    200,
    512,
    2**24,
)  # of one table; of one cell; pixels that pictures are compared at; pixels that are drawn
TAGS = re.compile(r"<(/?)(table|tr|td|th)\b([^<>]{0,200})>", re.IGNORECASE)
OTHER_TAGS = re.compile(r"<[^<>]{1,200}>")
HEIGHT, MARGIN = 24, 6  # pixels of a row, and around what a cell says


def render_and_compare(*, of: Literal["table", "formula"] = "table", column: Column = "picture") -> Scorer:
    """``max(0, SSIM)`` of the prompt's picture and of what the completion writes, rendered and brought to the picture's size; in 0..1.

    Tables are HTML (``<table>`` with spans) or Markdown (lines between ``|``), the last one of a completion; formulas are LaTeX as
    matplotlib draws it. 0 for none, and for one that cannot be drawn. Both are compared in grey at 512 pixels or less, so that the
    layout counts more than the letters: no other font is told from wrong words, and even a perfect reading is below 1.

    of: what completions write. column: of the prompts, that holds the picture of the table or formula: a path, bytes, or an image.

    Source: MonkeyOCR v1.5's reward for tables; its similarity is not known here. SSIM is scikit-image's (the group ``metrics``).

    Errors: UserError for a picture that cannot be read, and where scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise UserError(f"render_and_compare: needs the package scikit-image ({error}); pip install scikit-image") from error

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        import torch

        scores = []
        for text, shown in zip(
            texts("render_and_compare", outputs, prompts), column_of("render_and_compare", column, columns), strict=True
        ):
            try:
                true = picture(shown, Limits()).convert("L")
            except Broken as error:
                raise UserError(f"render_and_compare.column: {error}") from error
            drawn = table_picture(text) if of == "table" else formula_picture(text)
            scores.append(0.0 if drawn is None else max(0.0, _alike(true, drawn, structural_similarity)))
        return torch.tensor(scores, dtype=torch.float64)

    return Scorer("render_and_compare", score, low=0.0, high=1.0, reads=frozenset({column}))


def _alike(true: Any, drawn: Any, similarity: Any) -> float:
    import numpy as np

    scale = min(1.0, SIDE / max(true.size))
    size = tuple(max(8, round(side * scale)) for side in true.size)
    one, other = (np.asarray(picture.resize(size)) for picture in (true, drawn))
    return float(similarity(one, other, data_range=255, win_size=7))


# ---- tables


class Cell(NamedTuple):
    """Where a cell begins, how far it reaches, and what it says."""

    row: int
    column: int
    rows: int
    columns: int
    text: str


def cells_of(text: str) -> list[Cell]:
    """The cells of a completion's last table; none where there is no table, or one of more than 4,096 places."""
    if cells := _Html(text).cells:
        return cells
    rows: list[list[str]] = []
    for line in text.splitlines():
        line = line.strip()
        if not (line.startswith("|") and line.endswith("|") and len(line) > 1):
            rows = rows if not rows or not line else []  # words after a table: what comes later is another one
        elif set(line) - set("|-: "):
            rows.append([part.strip() for part in line[1:-1].split("|")])
    cells = [Cell(row, column, 1, 1, said[:LETTERS]) for row, parts in enumerate(rows) for column, said in enumerate(parts)]
    return cells if len(cells) <= CELLS else []


class _Html:
    """The cells of the last ``<table>`` of a text. Python's own parser of HTML takes time with the square of what is broken."""

    def __init__(self, text: str) -> None:
        self.cells: list[Cell] = []
        self._taken: set[tuple[int, int]] = set()
        self._row, self._next, self._span, inside = -1, 0, (1, 1), -1
        for tag in TAGS.finditer(text):
            if inside >= 0:
                self._cell(OTHER_TAGS.sub(" ", text[inside : tag.start()]))
                inside = -1
            name = tag[2].lower()
            if name == "table" and not tag[1]:
                self.cells, self._taken, self._row = [], set(), -1
            elif name == "tr" and not tag[1]:
                self._row, self._next = self._row + 1, 0
            elif name in ("td", "th") and not tag[1]:
                self._row = max(0, self._row)
                self._span = (_span(tag[3], "rowspan"), _span(tag[3], "colspan"))
                inside = tag.end()

    def _cell(self, said: str) -> None:
        while (self._row, self._next) in self._taken:
            self._next += 1
        rows, columns = self._span
        if len(self._taken) + rows * columns <= CELLS:
            self._taken |= {(self._row + down, self._next + right) for down in range(rows) for right in range(columns)}
            self.cells.append(Cell(self._row, self._next, rows, columns, " ".join(unescape(said[: 10 * LETTERS]).split())[:LETTERS]))


def _span(attributes: str, name: str) -> int:
    match = re.search(rf"\b{name}\s*=\s*[\"']?(\d{{1,3}})\b", attributes, re.IGNORECASE)
    return min(64, max(1, int(match[1]))) if match else 1


def table_picture(text: str) -> Any:
    """A completion's table as a grey PIL image, black on white with its lines; None for none, and for one of over 16 M pixels."""
    from PIL import Image, ImageDraw, ImageFont

    cells = cells_of(text)
    if not cells:
        return None
    font = ImageFont.load_default(HEIGHT * 0.6)
    count = max(cell.column + cell.columns for cell in cells)
    widths = [2.0 * MARGIN] * count
    for cell in cells:
        part = (font.getlength(cell.text) + 2 * MARGIN) / cell.columns
        for column in range(cell.column, cell.column + cell.columns):
            widths[column] = max(widths[column], part)
    edges = [round(sum(widths[:column])) for column in range(count + 1)]
    bottom = max(cell.row + cell.rows for cell in cells)
    if edges[-1] * bottom * HEIGHT > LARGEST:
        return None
    drawn = Image.new("L", (edges[-1] + 1, bottom * HEIGHT + 1), 255)
    pen = ImageDraw.Draw(drawn)
    for cell in cells:
        box = (edges[cell.column], cell.row * HEIGHT, edges[cell.column + cell.columns], (cell.row + cell.rows) * HEIGHT)
        pen.rectangle(box, outline=0)
        pen.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), cell.text, fill=0, font=font, anchor="mm")
    return drawn


# ---- formulas


def formula_picture(text: str) -> Any:
    """A completion's last formula as a grey PIL image, as matplotlib draws LaTeX; None where there is none, or one it cannot draw."""
    from matplotlib import mathtext
    from PIL import Image

    formula = text.replace("\\[", "$").replace("\\]", "$").replace("\\(", "$").replace("\\)", "$").replace("$$", "$")
    parts = [part.strip() for part in formula.split("$")[1::2]] or [formula.strip()]
    if not parts[-1] or len(parts[-1]) > 2000:
        return None
    buffer = io.BytesIO()
    try:
        mathtext.math_to_image(f"${' '.join(parts[-1].split())}$", buffer, dpi=150, format="png")
    except (ValueError, RecursionError, OverflowError):  # what it raises for LaTeX that it does not know
        return None
    with Image.open(buffer, formats=("PNG",)) as opened:
        drawn = opened.convert("L")
    return drawn if math.prod(drawn.size) else None
