"""Real option files with one to three faults each: what the check calls ready must run, what it refuses it must place.

``python tests/mutations.py --count 3000 --seed 0`` prints how many were refused, ran to the end, and disagreed.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from basicsr.archs import build_network
from nets import CASES

import basicsr_effsr
from basicsr_effsr.host import dry_run
from basicsr_effsr.host.dry_run import dry_step, undisturbed
from basicsr_effsr.options.check import inspected
from basicsr_effsr.options.problem import Problem

TRAINING = Path(__file__).resolve().parents[1] / 'options' / 'train'
RECIPES = sorted(set(TRAINING.glob('*.yml')) - set(TRAINING.glob('*realworld*')))  # those need files for their data
VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 17, 0.5, 1.5, -0.5, 2e4, float('nan'), float('inf'), '', 'abc', '2', '1e-4',
    '..', 'a/b', [], [0.9], [1, 2], ['a'], {}, {'a': 1}, {'type': 'L1Loss'},
)  # fmt: skip
EXTRAS = (  # options that the recipes do not use, or other values of theirs
    ('train.amp', 'bf16'), ('train.amp', 'fp16'), ('train.channels_last', True), ('train.grad_clip', 0.5),
    ('train.accumulate', 2), ('train.accumulate', 3), ('train.max_nonfinite', 1), ('train.ema_decay', 0),
    ('train.compile', {'mode': 'nobody'}), ('train.warmup_iter', 2e4), ('train.warmup_iter', 3),
    ('train.optim_g', {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}), ('train.optim_g', {'type': 'SparseAdam'}),
    ('train.optim_g', {'type': 'Rprop'}), ('train.optim_g', {'type': 'LBFGS'}), ('train.optim_g.type', 'Adafactor'),
    ('train.optim_g.type', 'AdamW'), ('train.optim_g.type', 'Muon'), ('train.optim_g.fused', True),
    ('train.optim_g.differentiable', True), ('train.optim_g.capturable', True), ('train.optim_g.amsgrad', True),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [2, 2], 'restart_weights': [1, 0.5]}),
    ('train.scheduler', {'type': 'MultiStepLR', 'milestones': [2], 'restarts': [0, 2], 'restart_weights': [1, 1]}),
    ('train.losses.l_x', {'type': 'GANLoss', 'gan_type': 'hinge'}), ('train.losses.l_x', {'type': 'WeightedTVLoss'}),
    ('train.losses.l_x', {'type': 'MSELoss', 'reduction': 'none'}), ('train.losses.l_x', {'type': 'CharbonnierLoss'}),
    ('train.losses.l_x', {'type': 'FAKDLoss'}), ('train.losses.l_x', {'type': 'KLDistillationLoss'}),
    ('train.pixel_opt', {'type': 'L1Loss', 'loss_weight': 0}), ('train.perceptual_opt', {'type': 'L1Loss'}),
    ('train.distill.teacher_dtype', 'bf16'), ('train.distill.adapter', 'none'), ('train.distill.alpha', 0),
    ('val.self_ensemble', True), ('val.fuse', False), ('val.tile', {'size': 16}), ('val.save_img', True),
    ('val.tile', {'size': 8, 'overlap': 12, 'blend': 'halo'}),
    ('val.metrics.niqe', {'type': 'calculate_niqe', 'crop_border': 0}),
    ('val.metrics.psnr.crop_border', 0), ('val.metrics', None), ('val.pbar', True), ('val', None),
    ('datasets.train.uint8', True), ('datasets.train.color', 'y'), ('datasets.train.use_rot', False),
    ('datasets.train.mean', [0.5, 0.5, 0.5]), ('datasets.train.prefetch_mode', 'cpu'),
    ('datasets.train.prefetch_mode', 'cuda'), ('datasets.train.type', 'PairedImageDataset'),
    ('datasets.train.type', 'PackedPairedImageDataset'), ('datasets.train.type', 'SingleImageDataset'),
    ('datasets.val.type', 'PairedImageDataset'), ('datasets.val.type', 'SingleImageDataset'),
    ('datasets.val.color', 'y'), ('model_type', 'SRModel'), ('model_type', 'DistillationModel'),
    ('model_type', 'SRGANModel'), ('name', 'a/b'), ('name', '..'), ('name', 'debug'), ('network_g.num_in_ch', 1),
    ('network_g.num_out_ch', 1), ('network_g.type', 'MSRResNet'), ('network_g', {'type': 'MSRResNet', 'upscale': 4}),
    ('logger.use_tb_logger', True), ('logger.wandb', {'project': 'x'}), ('num_gpu', 'auto'), ('num_gpu', 2),
)  # fmt: skip
FEW = {'total_iter': 2, 'val_freq': 2, 'print_freq': 1, 'save_checkpoint_freq': 1, 'num_worker_per_gpu': 1}


def make_data(folder: Path) -> Path:
    """Three photographs' worth of noise that is smooth, and their LR images: folder/{HR,X2,X3,X4}."""
    draws = np.random.default_rng(0)
    for i in range(3):
        gt = cv2.resize(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC)
        for name, size in (('HR', 96), ('X2', 48), ('X3', 32), ('X4', 24)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name / f'{i}.png'), cv2.resize(gt, (size, size), interpolation=cv2.INTER_AREA))
    return folder


def small(recipe: Path, data: Path) -> dict:
    """A recipe with a tiny network, few iterations and the data of ``make_data``, all other options as they are."""
    opt = yaml.safe_load(recipe.read_text(encoding='utf-8'))
    scale, train = opt['scale'], opt['train']
    for key in ('network_g', 'network_t'):
        if key in opt:
            opt[key] = CASES[opt[key]['type']].option(upscale=scale)
    for source in opt['datasets'].values():
        source |= {'dataroot_gt': str(data / 'HR'), 'dataroot_lq': str(data / f'X{scale}')}
        source['type'] = source['type'].replace('Packed', '').replace('PairedImageDataset', 'EffSRPairedDataset')
        source.setdefault('io_backend', {'type': 'disk'})
        source['meta_info_file'] = None
    opt['datasets']['train'] |= {'gt_size': 16 * scale, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    opt['datasets']['train'] |= {'persistent_workers': False, 'dataset_enlarge_ratio': 4}
    opt |= {'num_gpu': 0}
    for key, value in opt['path'].items():
        if key.startswith('pretrain_network') and value:
            label = key.removeprefix('pretrain_')
            file = data / f'{opt[label]["type"]}_{scale}.pth'
            if not file.is_file():
                net = build_network(opt[label])
                torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, file)
            opt['path'][key] = str(file)
    train |= {'total_iter': 4, 'warmup_iter': min(train.get('warmup_iter') or -1, 2)}
    schedule = train['scheduler']
    if 'periods' in schedule:
        schedule['periods'] = [4] * len(schedule['periods'])
    if 'milestones' in schedule:
        schedule['milestones'] = [2, 3]
    if train.get('progressive'):
        train['progressive'] = {'gt_size': [16 * scale, 24 * scale], 'iters': [1, 3], 'batch': [2, 1]}
    if train.get('distill', {}).get('feature_pairs'):
        train['distill']['feature_pairs'] = {'body.0': 'layers.0', 'body.1': 'layers.1'}
    for loss in (train.get('losses') or {}).values():
        if loss.get('type') == 'VGGFeatureLoss':
            loss |= {'download': False, 'if_missing': 'zero'}
    opt['val']['val_freq'] = 2
    opt['logger'] |= {'print_freq': 1, 'save_checkpoint_freq': 1, 'use_tb_logger': False}
    return opt


def places(opt: dict, before: tuple = ()) -> list[tuple]:
    """Paths of all options, sections included."""
    found = []
    for key, value in opt.items():
        found.append((*before, key))
        if isinstance(value, dict):
            found += places(value, (*before, key))
    return found


def section(opt: dict, place: tuple) -> dict:
    for key in place[:-1]:
        opt = opt[key]
    return opt


def graft(opt: dict, place: tuple, value: object) -> None:
    """Puts an option where it may not have been, with the sections that it needs."""
    for key in place[:-1]:
        if not isinstance(opt.get(key), dict):
            opt[key] = {}
        opt = opt[key]
    opt[place[-1]] = copy.deepcopy(value)


def mutate(opt: dict, others: list[dict], draws: random.Random) -> str:
    """Puts one fault into ``opt``, or an option of another recipe; says which.

    Args:
        opt: changed in place.
        others: recipes to take options from.
        draws: decides.
    """
    kind = draws.choice('drop misspell value value range null duplicate swap other other extra extra extra'.split())
    if kind == 'extra':
        where, value = draws.choice(EXTRAS)
        graft(opt, tuple(where.split('.')), value)
        return f'{kind} {where} {value}'
    if kind == 'other':
        other = draws.choice(others)
        place = draws.choice(places(other))
        graft(opt, place, section(other, place)[place[-1]])
        return f'{kind} {".".join(map(str, place))}'
    place = draws.choice(places(opt))
    name, parent = place[-1], section(opt, place)
    value = parent[name]
    if kind == 'drop':
        del parent[name]
    elif kind == 'misspell':
        text = str(name)
        i = draws.randrange(len(text))
        parent[text[:i] + text[i + 1 :] or 'x'] = parent.pop(name)
    elif kind == 'null':
        parent[name] = None
    elif kind == 'range' and isinstance(value, int | float):
        parent[name] = value * draws.choice([-1, 0, 2, 10, 0.1])
    elif kind == 'duplicate':
        other = draws.choice(places(opt))
        into = section(opt, other)
        into[name] = copy.deepcopy(value)
    elif kind == 'swap':
        other = draws.choice(list(parent))
        parent[name], parent[other] = parent[other], parent[name]
    else:
        parent[name] = copy.deepcopy(draws.choice(VALUES))
    return f'{kind} {".".join(map(str, place))}'


def is_placed(problem: Problem, opt: dict) -> bool:
    """True if the place is an option of the file, or one that is missing in a section of the file."""
    keys = problem.where.split('.')
    for i, key in enumerate(keys):
        if not isinstance(opt, dict):
            return False
        found = {str(k): v for k, v in opt.items()}
        if key not in found:
            return i >= len(keys) - 2  # it is missing, or the section that it would be in
        opt = found[key]
    return True


def check(opt: dict) -> list[Problem]:
    """What the rules or, if they find nothing fatal, the dry step find in a training."""
    context = inspected({**opt, 'rank': 0}, True)  # as on the machine that is to run it
    if not any(problem.fatal for problem in context.found):
        context.found += dry_step(context.opt, True)
    return context.found


@contextmanager
def _no_dry_step():
    before, dry_run.dry_step = dry_run.dry_step, lambda *_: []
    try:
        yield
    finally:
        dry_run.dry_step = before


def _train(opt: dict, folder: Path) -> None:
    import basicsr.train as host

    file = folder / 'run.yml'
    file.write_text(yaml.safe_dump(opt, sort_keys=False))
    names = dict(vars(host))
    with undisturbed(), _no_dry_step():
        sys.argv = ['train', '-opt', str(file)]
        try:
            host.train_pipeline(str(folder))
        finally:
            vars(host).update(names)


def run(opt: dict, folder: Path) -> None:
    """Two iterations, validation and saving by the host's own loop; then again from the first state."""
    opt = copy.deepcopy(opt)
    for group in ('train', 'val', 'logger'):
        for key in FEW.keys() & (opt.get(group) or {}).keys():
            if opt[group][key] is not None:
                opt[group][key] = min(opt[group][key], FEW[key])
    data = opt['datasets']['train']
    data['num_worker_per_gpu'] = min(data.get('num_worker_per_gpu', 0), FEW['num_worker_per_gpu'])
    _train(opt, folder)
    states = folder / 'experiments' / opt['name'] / 'training_states'
    if 'debug' not in opt['name']:  # of which BasicSR saves every eighth iteration only
        opt['path']['resume_state'] = str(states / '1.state')
        _train(opt, folder)
    if not list((states.parent / 'models').glob('net_g_latest.pth')):
        raise AssertionError('the run left no network')


def judge(opt: dict, folder: Path) -> tuple[str, str]:
    """(refused, ran or disagreed; why)."""
    kept = copy.deepcopy(opt)
    try:
        found = check(opt)
    except Exception:
        return 'disagreed', f'the check raises: {traceback.format_exc(limit=-3)}'
    if repr(kept) != repr(opt):
        return 'disagreed', 'the check changed the options'
    fatal = [problem for problem in found if problem.fatal]
    astray = [problem for problem in fatal if not is_placed(problem, opt)]
    if astray:
        return 'disagreed', f'refused at no place in the file: {astray[0]}'
    if fatal:
        return 'refused', str(fatal[0])
    try:
        run(opt, folder)
    except (Exception, SystemExit):
        return 'disagreed', f'ready, and the run stops: {traceback.format_exc(limit=-3)}'
    return 'ran', ''


def campaign(count: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Counts by outcome, and what disagreed.

    Args:
        count: mutations; those of a seed begin alike however many there are.
        seed: of the draws.
        folder: for data and runs.
    """
    counts, wrong = Counter(), []
    data = make_data(folder / 'data')
    recipes = [small(recipe, data) for recipe in RECIPES]
    for i in range(count):
        draws = random.Random(f'{seed}.{i}')
        opt = copy.deepcopy(draws.choice(recipes))
        faults = [mutate(opt, recipes, draws) for _ in range(draws.choice([1, 1, 1, 2])) if opt]
        with tempfile.TemporaryDirectory(dir=folder) as runs:
            outcome, why = judge(opt, Path(runs))
        counts[outcome] += 1
        if outcome == 'disagreed':
            wrong.append(f'{seed}.{i} ({"; ".join(faults)}): {why}')
            print(wrong[-1], flush=True)
        if (i + 1) % 100 == 0:
            print(f'{i + 1} of {count}: {dict(counts)}', flush=True)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    basicsr_effsr.register()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = campaign(arguments.count, arguments.seed, Path(folder))
    print(f'run {counts.total()}, refused {counts["refused"]}, ran to the end {counts["ran"]}, disagreed {len(wrong)}')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
