"""What commands report, in every format: tables as Markdown and CSV, strict JSON, files that are all there or none."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from basicsr_effsr.utils.errors import needs, printable
from basicsr_effsr.utils.files import alone_in, atomic_path

PAGE = 7.16  # inches, the width of a page of two columns
_MARKUP = re.compile(r'[\\`*|<>\[\]&~$]|:(?=\w+:)|(?<![^\W_])_|_(?![^\W_])')  # inside a word _ is a letter


def escaped(text: str) -> str:
    """``text`` as Markdown that shows it as it is, in a cell of a table too."""
    return _MARKUP.sub(r'\\\g<0>', printable(text))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with a line end."""
    lines = [head, ['---'] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def score_words(score: Sequence[float] | None) -> str:
    """PSNR [dB] and SSIM as tables print them."""
    return f'{score[0]:.2f} / {score[1]:.4f}' if score else '-'


def _cell(value: Any) -> Any:
    """A cell of text that a spreadsheet would take for a formula is marked as text, as it marks it itself."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if len(text) > 1 and text[0] in '=+-@' else text
    return text


def csv_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for a spreadsheet."""
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([head, *(map(_cell, row) for row in rows)])
    return out.getvalue()


def strict_json(data: Any, *, indent: int | None = 2) -> str:
    """Strict JSON: numbers that are not finite are null, named in the object's last key ``not_finite``."""
    lost: dict[str, str] = {}

    def strict(value: Any, where: str) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping):
            return {str(key): strict(v, f'{where}.{key}') for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [strict(v, f'{where}.{i}') for i, v in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            lost[where[1:]] = str(value)
            return None
        return value

    plain = strict(data, '')
    if lost and isinstance(plain, dict):
        plain['not_finite'] = lost
    return json.dumps(plain, indent=indent, allow_nan=False)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Puts each text into its file; all of them, or, if one cannot be written, none.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder), ExitStack() as files:
        for name, text in texts.items():
            part = files.enter_context(atomic_path(folder / name, sync=True))
            part.write_bytes(text.encode('utf-8', 'backslashreplace'))


def new_figure(**how: Any) -> Any:
    """An empty figure of matplotlib; ``how`` as for its ``Figure``.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = needs('matplotlib.figure', 'plots').Figure(**how)
    needs('matplotlib.backends.backend_agg', 'plots').FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Any, file: Path) -> None:
    """A figure of matplotlib at print quality, by the ending of the file; in PDF, fonts as publishers ask (no Type 3).

    Raises:
        OSError: it cannot be written.
    """
    with atomic_path(file, sync=True) as part, needs('matplotlib', 'plots').rc_context({'pdf.fonttype': 42}):
        figure.savefig(part, format=file.suffix[1:].lower(), dpi=300)
