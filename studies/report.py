"""The tables of ``docs/results.md`` from ``results/*.json``: ``python -m studies.report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from basicsr_effsr.utils.report import markdown_table
from studies.run import HERE, studies

SURE = 0.975  # a claim holds if the interval of 95 % lies above 0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); infinite of a single value."""
    if len(values) < 2:
        return fmean(values), float('inf')
    return fmean(values), float(student.ppf(SURE, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def differences(better: dict[str, Any], other: dict[str, Any], name: str) -> tuple[list[float], list[float]]:
    """PSNR of one run less that of another on the images of a set: means by seed, and means over seeds by image."""
    rows = []
    for seed in better.keys() & other.keys():
        first, second = (run[seed]['scores'][name]['psnr'] for run in (better, other))
        rows.append([first[image] - second[image] for image in first])
    return [fmean(row) for row in rows], [fmean(column) for column in zip(*rows, strict=True)]


def verdict(seeds: Sequence[float], images: Sequence[float], trained: bool) -> tuple[str, str]:
    """The difference with its interval, over seeds, or over images where nothing was trained; and what it says."""
    mean, half = interval(seeds if trained else images)
    if len(seeds) < 2 and trained:
        return f'{mean:+.3f}, one seed', 'cannot be told'
    told = 'cannot be told' if abs(mean) <= half else 'holds' if mean > 0 else 'does not hold'
    return f'{mean:+.3f} ± {half:.3f}', told


def section(name: str) -> str:
    """One study in Markdown."""
    study, found = studies()[name], json.loads((HERE / 'results' / f'{name}.json').read_text())
    runs = found['runs']
    rows = []
    for run, by_seed in runs.items():
        cells = [run, f'{next(iter(by_seed.values()))["parameters"]:,}', str(len(by_seed))]
        for one in ('val', 'Set5'):
            means = [fmean(r['scores'][one]['psnr'].values()) for r in by_seed.values() if one in r['scores']]
            spread = f' ± {stdev(means):.3f}' if len(means) > 1 else ''
            cells.append(f'{fmean(means):.3f}{spread}' if means else '-')
        rows.append(cells)
    head = ['run', 'parameters', 'seeds', 'validation, dB', 'Set5, dB']
    text = [f'### `{name}`', f'{study["about"]}. {study["paper"]}.', markdown_table(head, rows).rstrip()]
    rows = []
    for better, other in study['claims']:
        if better in runs and other in runs and runs[better].keys() & runs[other].keys():
            seeds, images = differences(runs[better], runs[other], 'val')
            said, told = verdict(seeds, images, study['set'].get('train', {}).get('total_iter') != 0)
            ahead = sum(value > 0 for value in images) / len(images)
            rows.append([f'{better} over {other}', said, f'{ahead:.0%}', told])
    head = ["the paper's order", 'difference, dB', 'images ahead', 'at this budget']
    return '\n\n'.join([*text, markdown_table(head, rows).rstrip()] if rows else text)


def page() -> str:
    """All studies that have results, in the order of ``studies.yml``."""
    done = [name for name in studies() if (HERE / 'results' / f'{name}.json').is_file()]
    return '\n\n'.join(section(name) for name in done) + '\n'


if __name__ == '__main__':
    print(page(), end='')
