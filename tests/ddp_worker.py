"""One rank of test_ddp.py: python -m torch.distributed.run ... ddp_worker.py OPTIONS.json FOLDER."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model

import basicsr_effsr
from basicsr_effsr.utils.distributed import init_dist


def batches(count: int, size: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shapes = {'lq': (size, 3, 16, 16), 'gt': (size, 3, 64, 64)}
    return [{key: torch.rand(shape, generator=generator) for key, shape in shapes.items()} for _ in range(count)]


def results(opt: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Weights after three steps on this rank's share of each batch, and what validation says."""
    opt = copy.deepcopy(opt) | {'dist': world > 1, 'rank': rank, 'world_size': world}
    torch.manual_seed(opt['manual_seed'])  # the ranks start equal; adapters are drawn after other numbers on each
    torch.rand(rank)
    model = build_model(opt)
    logs = []
    for i, batch in enumerate(batches(3, 4), 1):
        model.feed_data({key: value[rank::world] for key, value in batch.items()})
        model.optimize_parameters(i)
        logs.append(dict(model.get_current_log()))
    found: dict[str, Any] = {'logs': logs, 'net_g': model.get_bare_model(model.net_g).state_dict()}
    found['net_g_ema'] = model.net_g_ema.state_dict()
    found['adapters'] = model.adapters.state_dict()
    found['scores'] = {}
    for phase, data in opt['datasets'].items():
        if phase.startswith('val'):
            loader = build_dataloader(build_dataset(data), data, num_gpu=0)
            model.validation(loader, 3, None, save_img=True)
            found['scores'][phase] = dict(model.metric_results)
    found['best'] = model.best_metric_results
    model.step.max_nonfinite = 2
    bad = batches(1, 4)[0]
    bad['lq'][-1] = float('nan')  # on the last rank only
    before = copy.deepcopy(found['net_g'])
    model.feed_data({key: value[rank::world] for key, value in bad.items()})
    model.optimize_parameters(4)
    after = model.get_bare_model(model.net_g).state_dict()
    found['skipped'] = all(torch.equal(before[name], value) for name, value in after.items())
    found['net_g'] = before
    return found


if __name__ == '__main__':
    torch.set_num_threads(1)
    basicsr_effsr.register()
    logging.getLogger('basicsr').setLevel(logging.ERROR)
    init_dist('pytorch')
    this = int(os.environ['RANK'])
    torch.save(results(json.loads(Path(sys.argv[1]).read_text()), this, 2), Path(sys.argv[2]) / f'{this}.pth')
