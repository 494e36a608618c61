"""What papers and challenges print, from ``papers.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from basicsr_effsr._registration import lookup
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.recognise import variant_of


def papers() -> dict[str, Any]:
    """``rows``, a method at a scale each, and ``ntire``, a year's challenge each."""
    return json.loads(Path(__file__).with_name('papers.json').read_text(encoding='utf-8'))


def row_of(network: str, options: dict[str, Any], scale: int) -> dict[str, Any] | None:
    """The row with scores of a registered network with these options at this scale, if a paper has one."""
    cls, _ = lookup('ARCH', network)
    name = variant_of(cls, options) or cls.__name__
    rows = (row for row in papers()['rows'] if row['method'] == name and row['scale'] == scale)
    return next((row for row in rows if row.get('scores')), None)


def challenge_of(name: str) -> dict[str, Any]:
    """Baseline values and weights of a year's challenge, as published.

    Raises:
        UserError: there is none of that name.
    """
    years = {f'ntire{row["year"]}': row for row in papers()['ntire']}
    if name not in years:
        raise UserError(f'--protocol must be one of {", ".join(years)}, got {name!r}')
    return years[name]
