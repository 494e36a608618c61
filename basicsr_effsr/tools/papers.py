"""What papers and challenges print, from ``papers.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from basicsr_effsr._registration import lookup
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.weights.recognise import method_of


def papers() -> dict[str, Any]:
    """What the file holds, as its own ``about`` says."""
    return json.loads(Path(__file__).with_name('papers.json').read_text(encoding='utf-8'))


def row_of(network: str, options: dict[str, Any], scale: int) -> dict[str, Any] | None:
    """The row with scores of a registered network, if a paper has one of it with these options at this scale.

    Its ``protocol`` says how they were measured, as ``protocols`` of the file.
    """
    cls, _ = lookup('ARCH', network)
    name, known = method_of(cls, options) if cls else None, papers()
    rows = (row for row in known['rows'] if row['method'] == name and row['scale'] == scale)
    return next(({**row, 'protocol': known['protocols'].get(name, {})} for row in rows if row.get('scores')), None)


def bicubic_of(name: str, scale: int) -> list[float] | None:
    """PSNR [dB] and SSIM that papers print for bicubic enlargement of a set, to see whether images are theirs."""
    return papers()['bicubic'].get(name, {}).get(str(scale))


def challenge_of(name: str) -> dict[str, Any]:
    """Baseline values and weights of a year's challenge, as published."""
    years = {f'ntire{row["year"]}': row for row in papers()['ntire']}
    if name not in years:
        raise UserError(f'--protocol must be one of {", ".join(years)}, got {name!r}')
    return years[name]
