"""What one watches a training by: a line on a terminal, learning rates and images in tensorboard."""

from __future__ import annotations

import io
import logging
import re
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from basicsr.archs import build_network
from basicsr.utils import MessageLogger
from runs import parsed

from basicsr_effsr.host.ending import stoppable
from basicsr_effsr.host.watch import init_wandb_logger, with_rates
from basicsr_effsr.models.effsr_model import EffSRModel

TINY = {'type': 'HASN', 'num_feat': 8, 'num_block': 1, 'esa_channels': 4, 'upscale': 2}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Prefetcher:
    """As BasicSR's: reset, then next until there is None."""

    def __init__(self, batches):
        self.batches = batches

    def reset(self):
        self.left = iter(self.batches)

    def next(self):
        return next(self.left, None)


def train(total_iters, log):
    """The host's loop, by its variables."""
    batches = torch.utils.data.DataLoader(range(total_iters), batch_size=None)
    prefetcher, current_iter, epoch, tb_logger = stoppable(Prefetcher)(batches), 0, 0, None
    model = SimpleNamespace(log_dict={'l_pix': 0.25})
    prefetcher.reset()
    batch = prefetcher.next()
    while batch is not None:
        current_iter += 1
        if current_iter == log:
            logging.getLogger('basicsr').info('a line of the log')
        batch = prefetcher.next()
    return model, epoch, tb_logger


@pytest.fixture
def logger():
    """The host's, as it is when a training begins."""
    logger = logging.getLogger('basicsr')
    before = logger.level, logger.filters[:]
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(before[0])
    logger.filters[:] = before[1]


@pytest.mark.parametrize('kind', [Terminal, io.StringIO])
def test_a_terminal_is_told_how_far_the_run_is_and_nothing_else_is(kind, logger, monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.setattr(sys, 'stderr', kind())
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        train(4, log=3)
    finally:
        logger.removeHandler(handler)
    said = sys.stderr.getvalue()
    if kind is io.StringIO:
        assert said == 'a line of the log\n'
        return
    assert re.search(r'2 / 4  \S+ it/s  ETA \d+:\d\d:\d\d  l_pix 2\.500e-01', said)
    assert '\r\x1b[K\ra line of the log\n' in said, 'the line is wiped first'


class Writer:
    """Of tensorboard, what is used."""

    def __init__(self):
        self.scalars, self.images = {}, {}

    def add_scalar(self, name, value, iteration):
        self.scalars[name, iteration] = value

    def add_image(self, name, image, iteration):
        self.images[name, iteration] = image


def test_tensorboard_gets_learning_rates_and_the_log_stays_the_hosts(logger, caplog):
    opt = {'name': 'it', 'logger': {'print_freq': 1, 'use_tb_logger': True}, 'train': {'total_iter': 9}}
    lines = []
    logger.propagate = True
    for kind in (MessageLogger, with_rates(MessageLogger)):
        writer = Writer()
        caplog.clear()
        kind(opt, 0, writer)({'epoch': 0, 'iter': 7, 'lrs': [1e-3, 5e-4], 'l_pix': 0.5})
        lines.append(caplog.messages)
        rates = {name: value for (name, _), value in writer.scalars.items() if name.startswith('lr/')}
        assert writer.scalars['losses/l_pix', 7] == 0.5
    assert rates == {'lr/0': 1e-3, 'lr/1': 5e-4}
    assert lines[0] == lines[1]


class Pairs(list):
    """A data set with its options, as BasicSR's have them."""

    opt: ClassVar = {'name': 'Set3'}


@pytest.mark.parametrize('wanted', [None, 1])
def test_tensorboard_gets_the_first_validation_images_if_asked(wanted, tmp_path):
    opt = parsed(tmp_path, TINY, {})
    opt['val'] |= {} if wanted is None else {'log_images': wanted}
    model, writer = EffSRModel(opt), Writer()
    lq = torch.rand(3, 3, 16, 20)
    gt = torch.rand(3, 3, 32, 40)
    pairs = [{'lq': lq[i], 'gt': gt[i], 'lq_path': f'{i}.png'} for i in range(3)]
    loader = torch.utils.data.DataLoader(Pairs(pairs))
    model.validation(loader, 5, writer, False)
    model.validation(loader, 5, None, False)
    if wanted is None:
        assert writer.images == {}
        return
    ((name, image),) = writer.images.items()
    assert name == ('images/Set3/0', 5)
    assert image.shape == (3, 32, 120)
    assert torch.equal(image[:, ::2, :40:2], lq[0])
    assert torch.equal(image[:, :, 80:], gt[0])
    net = build_network(TINY)
    net.load_state_dict(model.net_g_ema.state_dict())
    with torch.no_grad():
        assert torch.allclose(image[:, :, 40:80], net.eval()(lq[:1])[0].clamp(0, 1), atol=1e-6)


def test_a_wandb_without_the_function_that_the_host_asks_for(monkeypatch):
    begun = {}
    wandb = SimpleNamespace(util=SimpleNamespace(), init=lambda **how: begun.update(how))
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    init_wandb_logger({'name': 'it', 'logger': {'wandb': {'project': 'sr'}}})
    assert (begun['project'], begun['name'], begun['resume']) == ('sr', 'it', 'never')
    assert begun['id']
