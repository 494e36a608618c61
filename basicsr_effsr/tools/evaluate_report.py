"""The report of an evaluation: networks side by side, beside their papers, with paired differences; every format."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel, ValidationError

from basicsr_effsr.data.benchmark_sets import SetImage
from basicsr_effsr.imaging.metrics import to_y
from basicsr_effsr.tools.papers import bicubic_of
from basicsr_effsr.tools.scoring import ImageScore, Panels, Protocol
from basicsr_effsr.utils.errors import UserError
from basicsr_effsr.utils.files import read_text
from basicsr_effsr.utils.report import csv_table, escaped, markdown_table, score_words, strict_json

ERROR_GAIN = 8  # grey levels of error are shown this many times brighter
SAME_SET = 0.1  # dB between bicubic here and in papers, whose authors round and crop in several ways
Table = tuple[list[str], list[list[str]]]


@dataclass
class EvaluationReport:
    """Everything that was measured of one network, with how."""

    network: str
    parameters: int
    scale: int
    weights: str | None
    protocol: str
    machine: str
    images: list[ImageScore] = field(default_factory=list)
    paper: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)  # what keeps the numbers from being compared, a sentence each
    name: str = ''  # what it is called beside others; empty: as its class

    def __post_init__(self) -> None:
        self.name = self.name or self.network

    def means(self) -> dict[str, dict[str, float]]:
        """Set -> mean of each score over its images, and their number."""
        keys = ('psnr', 'ssim', 'bicubic_psnr', 'bicubic_ssim', 'seconds')
        sets: dict[str, list[ImageScore]] = {}
        for image in self.images:
            sets.setdefault(image.set, []).append(image)
        return {
            name: {key: fmean(getattr(row, key) for row in rows) for key in keys} | {'images': len(rows)}
            for name, rows in sets.items()
        }

    def table(self) -> Table:
        """Head and rows, a set each, beside what the paper prints."""
        rows = []
        for name, mean in self.means().items():
            paper, gap = (self.paper or {}).get('scores', {}).get(name), '-'
            if paper:
                # + 0.0: a difference that rounds to zero has no sign
                psnr, ssim = round(mean['psnr'] - paper[0], 2) + 0.0, round(mean['ssim'] - paper[1], 4) + 0.0
                gap = f'{psnr:+.2f} / {ssim:+.4f}'
            scores = [(mean['bicubic_psnr'], mean['bicubic_ssim']), (mean['psnr'], mean['ssim']), paper]
            rows.append([name, f'{mean["images"]:.0f}', *map(score_words, scores), gap, f'{mean["seconds"]:.3f}'])
        return ['set', 'images', 'bicubic', 'this run', 'paper', 'difference', 's / image'], rows

    def words(self) -> tuple[str, list[str]]:
        """What was measured; where the paper's values stand, and the remarks."""
        head = f'{self.network}, x{self.scale}, {self.parameters:,} parameters; PSNR [dB] / SSIM on {self.protocol}'
        paper = self.paper or {}
        source = '; '.join(paper[key] for key in ('source', 'note') if paper.get(key))
        return f'{head}; {self.machine}', [*([f'Paper: {source}'] if source else []), *self.remarks]


class Mean(BaseModel):
    """What networks are compared by, over a set."""

    psnr: float  # dB
    ssim: float


class Means(BaseModel):
    """What stays of a report about one network where only its means are asked for."""

    protocol: str = ''
    means: dict[str, Mean]  # by set

    @classmethod
    def read(cls, file: Path) -> Means:
        """Those of a report.json.

        Raises:
            OSError: it cannot be read.
            UserError: it is something else.
        """
        try:
            return cls.model_validate_json(read_text(file))
        except ValidationError as error:
            raise UserError(f'{file} must be report.json of effsr evaluate about one network') from error


@dataclass(frozen=True)
class Difference:
    """Mean of a difference per image, its 95 % confidence interval and p of the paired t-test; None if unknown."""

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        """Of paired values; of a single pair, and where all pairs differ alike, there is only the mean."""
        from scipy.stats import ttest_rel

        gaps = np.subtract(ours, theirs)
        if len(gaps) < 2 or not np.isfinite(gaps).all() or np.ptp(gaps) == 0:
            return cls(float(gaps.mean()))
        test = ttest_rel(ours, theirs)
        low, high = test.confidence_interval(0.95)
        return cls(float(gaps.mean()), float(low), float(high), float(test.pvalue))

    def words(self, digits: int) -> list[str]:
        """Mean with its interval, and p."""
        mean = f'{round(self.mean, digits) + 0.0:+.{digits}f}'
        if self.low is None or self.high is None or self.p is None:
            return [mean, '-']
        return [f'{mean} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]', f'{self.p:.1g}']


@dataclass(frozen=True)
class Paired:
    """A network against the first one on the same images of a set."""

    set: str
    network: str
    reference: str
    images: int
    better: int  # images with the higher PSNR
    psnr: Difference
    ssim: Difference


def paired(first: EvaluationReport, other: EvaluationReport) -> list[Paired]:
    """``other`` against ``first``, which were measured on the same images, a row per set."""
    sets: dict[str, list[tuple[ImageScore, ImageScore]]] = {}
    for ours, theirs in zip(other.images, first.images, strict=True):
        sets.setdefault(ours.set, []).append((ours, theirs))
    rows = []
    for name, pairs in sets.items():
        psnr, ssim = ([[getattr(score, key) for score in side] for side in zip(*pairs)] for key in ('psnr', 'ssim'))  # noqa: B905
        better = sum(ours.psnr > theirs.psnr for ours, theirs in pairs)
        differences = Difference.of(*psnr), Difference.of(*ssim)
        rows.append(Paired(name, other.name, first.name, len(pairs), better, *differences))
    return rows


@dataclass
class Evaluation:
    """Networks of one scale on the same images."""

    models: list[EvaluationReport]
    paired: list[Paired] = field(default_factory=list)  # each network but the first against the first

    def table(self) -> Table:
        """Of one network a row per set; of several a row per method, as papers print it, each above its paper."""
        if len(self.models) == 1:
            return self.models[0].table()
        means = [report.means() for report in self.models]
        sets = list(means[0])
        cubic = [score_words((means[0][name]['bicubic_psnr'], means[0][name]['bicubic_ssim'])) for name in sets]
        rows = [['bicubic', '-', *cubic]]
        for report, mean in zip(self.models, means, strict=True):
            measured = [score_words((mean[name]['psnr'], mean[name]['ssim'])) for name in sets]
            rows.append([report.name, f'{report.parameters:,}', *measured])
            if scores := (report.paper or {}).get('scores'):
                rows.append([f'{report.name}, paper', '', *(score_words(scores.get(name)) for name in sets)])
        return ['method', 'parameters', *(f'{name} ({means[0][name]["images"]:.0f})' for name in sets)], rows

    def paired_table(self) -> Table:
        """Head and rows of the paired differences; no rows for one network."""
        head = ['set', 'network', 'better on', 'PSNR [dB], 95 % interval', 'p', 'SSIM, 95 % interval', 'p']
        rows = [
            [row.set, row.network, f'{row.better} of {row.images}', *row.psnr.words(2), *row.ssim.words(4)]
            for row in self.paired
        ]
        return head, rows

    def title(self) -> str:
        """What the paired differences are to."""
        return f'Differences to {self.models[0].name} per image: mean, paired t-test'

    def words(self) -> tuple[str, list[str]]:
        """What was measured, and the remarks."""
        first = self.models[0]
        if len(self.models) == 1:
            return first.words()
        alike = len({report.protocol for report in self.models}) == 1
        head = (
            f'x{first.scale}; PSNR [dB] / SSIM on {first.protocol if alike else "several protocols"}; {first.machine}'
        )
        notes = [f'{report.name}: {report.protocol}' for report in self.models if not alike]
        notes += (
            [] if alike else ['The networks use different protocols: their differences include those of the protocols.']
        )
        found = [(report.name, note) for report in self.models for note in report.words()[1]]
        shared = {note for _, note in found if sum(note == other for _, other in found) == len(self.models)}
        named = (note if note in shared else f'{name}. {note}' for name, note in found)
        return head, [*notes, *dict.fromkeys(named)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: of one network its report with the means, of several ``models`` and ``paired``."""
        models = [{**asdict(report), 'means': report.means()} for report in self.models]
        return models[0] if len(models) == 1 else {'models': models, 'paired': [asdict(row) for row in self.paired]}


def data_uri(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a PNG inside a page."""
    return 'data:image/png;base64,' + base64.b64encode(cv2.imencode('.png', image[..., ::-1])[1].tobytes()).decode()


def error_map(image: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: absolute luma error, black for none, through red to white for 32 grey levels and more."""
    gap = np.abs(to_y(image) - to_y(gt)) * ERROR_GAIN
    return np.stack([np.clip(gap * 3 - 255 * i, 0, 255) for i in range(3)], axis=-1).astype(np.uint8)


def shown_image(scores: Sequence[ImageScore], panels: Sequence[Panels]) -> dict[str, Any]:
    """An image on the page: its scores and what each network made of it, as data URIs."""
    gt = panels[0]['gt']
    nets = [{'net': data_uri(each['net']), 'error': data_uri(error_map(each['net'], gt))} for each in panels]
    return {'scores': scores, 'nets': nets, 'bicubic': data_uri(panels[0]['bicubic']), 'gt': data_uri(gt)}


def worth_showing(report: Evaluation, count: int) -> list[int]:
    """Places of images: of one network those with the least gain over bicubic, of several where they differ most."""

    def merit(place: int) -> float:
        scores = [model.images[place].psnr for model in report.models]
        if len(scores) == 1:
            return scores[0] - report.models[0].images[place].bicubic_psnr
        return min(scores) - max(scores)

    return sorted(range(len(report.models[0].images)), key=merit)[:count]


def texts(report: Evaluation, shown: Sequence[dict[str, Any]] = ()) -> dict[str, str]:
    """The report in every format: file name -> text.

    Args:
        report: the scores.
        shown: images on the page, of :func:`shown_image`.
    """
    from jinja2 import Environment, FileSystemLoader

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    measured, notes = report.words()
    parts = [f'{escaped(measured)}\n', markdown_table(*report.table())]
    if report.paired:
        parts += [f'{escaped(report.title())}\n', markdown_table(*report.paired_table())]
    columns = ['network', *(each.name for each in fields(ImageScore))]
    rows = [(model.name, *astuple(image)) for model in report.models for image in model.images]
    return {
        'report.md': '\n'.join([*parts, *(f'{escaped(n)}\n' for n in notes)]),
        'report.csv': csv_table(columns, rows),
        'report.json': strict_json(report.as_dict()) + '\n',
        'report.html': pages.get_template('evaluate.html').render(report=report, models=report.models, shown=shown),
    }


def remarks(
    report: EvaluationReport, used: Protocol, theirs: Protocol | None, work: list[tuple[str, SetImage]]
) -> list[str]:
    """What keeps the scores of a report from being compared with the paper's, a sentence each.

    They were measured as ``used`` says, the paper's as ``theirs``; ``work`` are (name of the set, pair) of the images.
    """
    scale, found = report.scale, []
    if theirs is not None:
        crop = math.lcm(theirs.modulus, scale)
        if used.words(scale) != theirs.words(scale):
            found.append(f'Paper and run use different protocols; the paper: {theirs.words(scale)}.')
        for folder in sorted({pair.gt.parent for _, pair in work}):
            kept = re.fullmatch(r'GTmod(\d+)', folder.name)
            if kept and crop % int(kept[1]):
                found.append(
                    f'Paper and run use different crops: the images of {folder} are cropped to multiples of '
                    f'{kept[1]}, those of the paper to multiples of {crop}.'
                )
    for name, mean in report.means().items():
        printed = bicubic_of(name, scale)
        if printed and abs(mean['bicubic_psnr'] - printed[0]) > SAME_SET:
            found.append(
                f'{name} is not the set of the papers: bicubic gives {mean["bicubic_psnr"]:.2f} dB on these '
                f'{mean["images"]:.0f} images, the papers print {printed[0]:.2f} / {printed[1]:.4f}.'
            )
    return found
