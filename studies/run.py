"""Small trainings that differ in one factor, with several seeds each; ``studies.yml`` lists them.

    python -m studies.run hasn_kl                # or several names, or all
    python -m studies.run all --seeds 5          # two more of each

Every run is ``python -m basicsr.train`` on ``options/train/quickstart.yml`` with the study's changes; afterwards each
image of the validation set and of Set5 is scored. Trained on 360 photographs of the reference data (``--reference``, or
``EFFSR_REFERENCE``), or on the photographs of scikit-image where there are none. What is finished is not done again, so
a study that was stopped goes on with the same command. ``results/NAME.json`` has the scores and the curves.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import re
import runpy
import signal
import sys
import time
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from basicsr.archs import build_network

from basicsr_effsr.data.benchmark_sets import images_of
from basicsr_effsr.imaging.bicubic import imresize, mod_crop
from basicsr_effsr.imaging.picture import read_rgb
from basicsr_effsr.options.file import read_option_file
from basicsr_effsr.tools.runs import run_of
from basicsr_effsr.tools.scoring import Protocol, forward_function, measure
from basicsr_effsr.utils.files import write_bytes
from basicsr_effsr.weights.checkpoint import can_be_fused, fused, load_into
from datasets_prep.files import write_png
from datasets_prep.pack import make_pack
from datasets_prep.sample import write_sample

HERE = Path(__file__).parent
SCALES = (2, 4)


def studies() -> dict[str, Any]:
    """What ``studies.yml`` lists, by name."""
    return yaml.safe_load((HERE / 'studies.yml').read_text(encoding='utf-8'))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, section by section; a section with a ``type`` replaces one of another type."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        out[key] = merged(old, value) if both and value.get('type', old.get('type')) == old.get('type') else value
    return out


def options_of(study: dict[str, Any], run: str) -> dict[str, Any]:
    """The option file of a run, but for seed and places; ``start`` and ``note`` are left to the caller."""
    recipe = study.get('recipe')
    base = read_option_file(HERE.parent / 'options' / 'train' / f'{recipe or "quickstart"}.yml')
    every = {} if recipe else studies()['every']['set']
    for changes in (every, study.get('set', {}), study['runs'][run]):
        base = merged(base, changes)
    base.pop('start', None)
    if recipe:
        return base
    scale, total = base['scale'], base['train']['total_iter']
    base['network_g'] = {**base['network_g'], 'upscale': scale}
    del base['datasets']['val'], base['val']  # scored at the end, image by image
    base['train']['scheduler'] = {**base['train']['scheduler'], 'periods': [total]}
    base['logger']['save_checkpoint_freq'] = total // 2
    return base


def prepare(work: Path, reference: Path) -> str:
    """Writes the images under ``work``, once; returns which they are."""
    data, photos = work / 'data', reference / 'photos'
    name = f'{len(list(photos.glob("*.jpg")))} photographs of the reference data' if photos.is_dir() else 'sample'
    if (data / 'ready').is_file():
        return (data / 'ready').read_text()
    if not photos.is_dir():
        write_sample(data, scales=SCALES, pack=True)
    else:
        for i, file in enumerate(sorted(photos.glob('*.jpg'))):
            hr = mod_crop(read_rgb(file), 12)
            split = data / ('val' if i % 10 == 4 else 'train')  # the fixed list: every tenth by name
            write_png(split / 'HR' / f'{file.stem}.png', hr[..., ::-1])
            for scale in SCALES:
                lq = imresize(hr, scale=Fraction(1, scale))
                write_png(split / 'LR_bicubic' / f'X{scale}' / f'{file.stem}.png', lq[..., ::-1])
        for folder in (data / 'train' / 'HR', *(data / 'train' / 'LR_bicubic' / f'X{scale}' for scale in SCALES)):
            make_pack(folder, folder.with_suffix('.pack'))
    (data / 'ready').write_text(name)
    return name


def placed(opt: dict[str, Any], work: Path, reference: Path, name: str, seed: int) -> dict[str, Any]:
    """``opt`` with its name, seed and images; ``$reference`` stands for that folder in paths."""
    scale, data = opt['scale'], work / 'data'
    train = {'dataroot_gt': f'{data}/train/HR.pack', 'dataroot_lq': f'{data}/train/LR_bicubic/X{scale}.pack'}

    def filled(section: dict[str, Any]) -> dict[str, Any]:
        return {k: v.replace('$reference', str(reference)) if isinstance(v, str) else v for k, v in section.items()}

    datasets = {
        split: filled({**section, **(train if split == 'train' else {})}) for split, section in opt['datasets'].items()
    }
    changes = {'name': name, 'manual_seed': seed, 'num_gpu': 0, 'datasets': datasets, 'path': filled(opt['path'])}
    return merged(opt, changes)


def scores(net: torch.nn.Module, scale: int, work: Path, reference: Path) -> dict[str, Any]:
    """PSNR [dB] and SSIM on Y of every image, by set; bicubic's mean beside them."""
    run, _, _ = forward_function(net.eval(), scale, torch.device('cpu'), Protocol())
    found: dict[str, Any] = {}
    for name, folder in (('val', work / 'data' / 'val'), ('Set5', reference / 'set5')):
        if not folder.is_dir():
            continue
        images = [measure(name, pair, scale, run)[0] for pair in images_of(folder, scale)]
        found[name] = {
            'psnr': {image.image: round(image.psnr, 4) for image in images},
            'ssim': round(sum(image.ssim for image in images) / len(images), 5),
            'bicubic': round(sum(image.bicubic_psnr for image in images) / len(images), 4),
        }
    return found


def train_and_score(opt: dict[str, Any], work: Path, reference: Path, out: Path) -> None:
    """In a process of its own: the host's training in ``work``, then the scores of its moving average into ``out``."""
    os.chdir(work)
    torch.set_num_threads(1)
    file = work / 'options' / f'{opt["name"]}.yml'
    write_bytes(file, yaml.safe_dump(opt, sort_keys=False).encode())
    start, log = time.process_time(), work / 'logs' / f'{opt["name"]}.txt'
    log.parent.mkdir(exist_ok=True)
    if opt['train']['total_iter']:
        with log.open('w') as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.argv = ['train.py', '-opt', str(file), '--auto_resume']
        runpy.run_module('basicsr.train', run_name='__main__', alter_sys=True)
    seconds = time.process_time() - start
    net = build_network(dict(opt['network_g']))
    folder = work / 'experiments' / opt['name']
    trained = opt['train']['total_iter'] > 0
    weights = folder / 'models' / 'net_g_latest.pth' if trained else Path(opt['path']['pretrain_network_g'])
    load_into(net, str(weights), param_key='params_ema', strict=True)
    curves = run_of(folder) if trained else None
    result = {
        'parameters': sum(p.numel() for p in net.parameters()),
        'iterations': opt['train']['total_iter'],
        'seconds': round(seconds, 1),
        'loss': [[i, round(value, 6)] for i, value in curves.loss] if curves else [],
        **({'validations': curves.scores} if curves and curves.scores else {}),
        'scores': scores(fused(net) if can_be_fused(net) else net, opt['scale'], work, reference),
    }
    write_bytes(out, json.dumps(result).encode())


def lacking(study: dict[str, Any], reference: Path) -> list[Path]:
    """What a study needs of the reference data and does not find there."""
    named = re.findall(r'\$reference/([^\s\'",}]+)', json.dumps(study))
    return [reference / path for path in dict.fromkeys(named) if not (reference / path).exists()]


def slug(study: str, run: str, seed: int) -> str:
    """The name of a run's files."""
    return re.sub(r'\W+', '_', f'{study} {run} {seed}')


def do(name: str, study: dict[str, Any], seed: int, run: str, work: Path, reference: Path) -> dict[str, Any]:
    """One run of a study, or what it gave before.

    Raises:
        RuntimeError: the training ended badly; its log is named.
    """
    title = slug(name, run, seed)
    out = work / 'runs' / f'{title}.json'
    opt = placed(options_of(study, run), work, reference, title, seed)
    if not out.is_file() or json.loads(out.read_text())['iterations'] != opt['train']['total_iter']:
        if start := study['runs'][run].get('start'):
            do(name, study, seed, start['run'], work, reference)
            models = work / 'experiments' / slug(name, start['run'], seed) / 'models'
            path = {'pretrain_network_g': str(models / f'net_g_{start["at"]}.pth'), 'param_key_g': start['key']}
            opt['path'] = {**opt['path'], **path}
        method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
        child = multiprocessing.get_context(method).Process(
            target=train_and_score, args=(opt, work, reference, out), daemon=True
        )
        child.start()
        child.join()
        if child.exitcode or not out.is_file():
            raise RuntimeError(f'{title} ended with {child.exitcode}; {work / "logs" / title}.txt says why')
    return json.loads(out.read_text())


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in studies() if name != 'every']
    parser.add_argument('names', nargs='+', choices=[*known, 'all'], metavar='NAME', help=', '.join([*known, 'all']))
    parser.add_argument('--seeds', type=int, default=3, help='how many, from 0 on (3)')
    parser.add_argument('--iterations', type=int, help='how far a study that takes a recipe as it is goes now')
    usual = os.environ.get('EFFSR_REFERENCE', HERE.parents[1] / 'shared' / 'reference')
    parser.add_argument('--reference', type=Path, default=Path(usual), help='folder with photos, set5, checkpoints')
    parser.add_argument('--work', type=Path, default=Path('experiments/studies'), help='folder of data and trainings')
    parser.add_argument('--out', type=Path, default=HERE / 'results', help='folder of the JSON files')
    args = parser.parse_args(words)
    work, reference = args.work.resolve(), args.reference.resolve()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the training in the child, too
    for module in ('basicsr.data', 'basicsr.models'):  # here and not in every run, where they take as long as training
        import_module(module)
    gc.freeze()  # or the first collection of a child copies every page
    names = []
    for name in known if 'all' in args.names else args.names:
        if missing := lacking(studies()[name], reference):
            said = f'{name} needs {missing[0]}, which does not exist; put it there, or name its folder by --reference'
            if 'all' not in args.names:
                parser.error(said)
            print(f'left out: {said}', flush=True)
        else:
            names.append(name)
    images = prepare(work, reference)
    for name in names:
        study = studies()[name]
        if args.iterations and 'recipe' in study:  # whose schedule does not hang on it
            study = merged(study, {'set': {'train': {'total_iter': args.iterations}}})
        about = {'images': images, 'torch': torch.__version__, 'python': platform.python_version()}
        found: dict[str, Any] = {'study': name, **about, 'runs': {}}
        for seed in range(study.get('seeds', args.seeds)):
            for run in study['runs']:
                result = do(name, study, seed, run, work, reference)
                found['runs'].setdefault(run, {})[str(seed)] = result
                mean = {s: sum(v['psnr'].values()) / len(v['psnr']) for s, v in result['scores'].items()}
                words = ', '.join(f'{s} {value:.3f} dB' for s, value in mean.items())
                print(f'{name} {run} seed {seed}: {words}, {result["seconds"]:.0f} s', flush=True)
                args.out.mkdir(parents=True, exist_ok=True)
                text = json.dumps(found, separators=(',', ':')) + '\n'
                write_bytes(args.out / f'{name}.json', text.encode())


if __name__ == '__main__':
    main()
