"""The tables of ``docs/results.md`` from ``results/*.json``: ``python -m studies.report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from basicsr_effsr.utils.report import markdown_table
from studies.run import HERE, options_of, studies

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
        return f'{mean:+.3f}, one seed', 'inconclusive'
    told = 'inconclusive' if abs(mean) <= half else 'holds' if mean > 0 else 'does not hold'
    return f'{mean:+.3f} ± {half:.3f}', told


def results_of(name: str) -> dict[str, Any] | None:
    """What a study gave, as far as it ran; None if it has not."""
    file = HERE / 'results' / f'{name}.json'
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else None


def claims_of(study: dict[str, Any], runs: dict[str, Any]) -> list[list[str]]:
    """Of every claim whose two runs have a seed in common: its words, difference, images ahead, verdict."""
    rows = []
    for better, other in study['claims']:
        if better in runs and other in runs and runs[better].keys() & runs[other].keys():
            seeds, images = differences(runs[better], runs[other], 'val')
            said, told = verdict(seeds, images, study['set'].get('train', {}).get('total_iter') != 0)
            ahead = sum(value > 0 for value in images) / len(images)
            rows.append([f'{better} over {other}', said, f'{ahead:.0%}', told])
    return rows


def overview() -> str:
    """The verdict of every claim of every study, those that have not been run among them."""
    rows = []
    for name, study in studies().items():
        if name == 'every' or not study['claims']:
            continue
        runs = (results_of(name) or {'runs': {}})['runs']
        found = {words: told for words, _, _, told in claims_of(study, runs)}
        least = min((len(runs.get(run, ())) for run in study['runs']), default=0)
        rows.append([name, str(least)])
        for told in ('holds', 'does not hold', 'inconclusive', 'not run'):
            claims = [f'{better} over {other}' for better, other in study['claims']]
            rows[-1].append('; '.join(claim for claim in claims if found.get(claim, 'not run') == told) or '-')
    return markdown_table(['study', 'seeds', 'holds', 'does not hold', 'inconclusive', 'not run'], rows).rstrip()


def curve(result: dict[str, Any], patches: int) -> str:
    """PSNR of a run's validations against the patches seen, each about a quarter more than the one before."""
    points, rows, last = result['validations']['Set5 psnr'], [], 0
    for when, value in points:
        if when >= 1.25 * last or when == points[-1][0]:
            rows.append([f'{when:,}', f'{when * patches:,}', f'{value:.3f}'])
            last = when
    return markdown_table(['iterations', 'patches seen', 'Set5, dB'], rows).rstrip()


def section(name: str) -> str:
    """One study in Markdown."""
    study, found = studies()[name], results_of(name)
    assert found is not None
    runs, rows = found['runs'], []
    for run, by_seed in runs.items():
        cells = [run, f'{next(iter(by_seed.values()))["parameters"]:,}', str(len(by_seed))]
        for one in ('val', 'Set5'):
            means = [fmean(r['scores'][one]['psnr'].values()) for r in by_seed.values() if one in r['scores']]
            spread = f' ± {stdev(means):.3f}' if len(means) > 1 else ''
            cells.append(f'{fmean(means):.3f}{spread}' if means else '-')
        rows.append(cells)
    head = ['run', 'parameters', 'seeds', 'validation, dB', 'Set5, dB']
    parts = [f'### `{name}`', f'{study["about"]}. {study["paper"]}.', markdown_table(head, rows).rstrip()]
    if claims := claims_of(study, runs):
        head = ["the paper's order", 'difference, dB', 'images ahead', 'at this budget']
        parts.append(markdown_table(head, claims).rstrip())
    for run, by_seed in runs.items():
        if 'validations' in by_seed.get('0', {}):
            parts.append(curve(by_seed['0'], options_of(study, run)['datasets']['train']['batch_size_per_gpu']))
    return '\n\n'.join(parts)


def page() -> str:
    """The overview, and all studies that have results in the order of ``studies.yml``."""
    done = [name for name in studies() if results_of(name)]
    return '\n\n'.join([overview(), *map(section, done)]) + '\n'


if __name__ == '__main__':
    print(page(), end='')
