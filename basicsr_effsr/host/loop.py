"""What replaces functions of BasicSR's training loop when an option file names our classes.

The host's loop lives in ``basicsr/train.py`` and takes these names from its own globals;
``adapt.py`` puts ours there. Reasons:

* ``load_resume_state``: the host needs a GPU to resume (1.4.2 and head), picks the newest state even
  if it is truncated, and looks for a frozen teacher among the run's own checkpoints.
* ``EnlargedSampler``, ``build_dataloader``: the host starts an epoch again after a resume, its workers
  repeat their draws in every epoch, and it ends a run early without a word.
"""

from __future__ import annotations

from typing import Any

from basicsr_effsr._registration import derives_from_ours
from basicsr_effsr.data.course import StagePlan, enlarge_ratio_for, epoch_at, iterations_that_run
from basicsr_effsr.data.sampler import PlannedBatches, ResumableSampler, make_loader
from basicsr_effsr.host.resume import load_resume_state, warn
from basicsr_effsr.models.run_state import RunState, recipe

Options = dict[str, Any]


def _settle(run: RunState, sampling: Options, plan: StagePlan, samples: int) -> tuple[int, int]:
    """(epoch, iterations before it) since which samples have been drawn like this; remembered in ``run.sampling``.

    Where they were drawn otherwise before, epochs have another length now. The host ends a run after a number of
    epochs, so the run goes on in the epoch that the new plan has reached at its iteration. The host takes the epoch
    from the resumed state, and only after the data set is known: it is put right there.

    Args:
        run: the run, new or resumed.
        sampling: how samples are drawn; empty for a data set of the host, which starts again.
        plan: the stages.
        samples: per epoch and rank.
    """
    state = run.resumed
    before = {key: value for key, value in run.sampling.items() if key != 'anchor'}
    if state is None:
        anchor = (0, 0)
    elif sampling and before == sampling:
        epoch, done = run.sampling['anchor']
        anchor = (epoch, done)
    elif sampling and not before and state['iter'] and state['epoch'] == epoch_at(plan, samples, state['iter'] - 1):
        anchor = (0, 0)  # BasicSR's own model does not save how samples were drawn; this state fits what is drawn now
    else:
        anchor = (epoch_at(plan, samples, state['iter']), state['iter'])
        state['epoch'] = anchor[0]
        changed = [key for key in sampling if before.get(key) != sampling[key]]
        had, has = ({key: of.get(key) for key in changed} for of in (before, sampling))
        reason = (
            f'it had {had} and now has {has}' if sampling else 'its data set starts again, EffSRPairedDataset goes on'
        )
        if state['iter']:
            warn(f'the run goes on with the first sample of epoch {anchor[0]}, not exactly: {reason}')
    run.sampling = {**sampling, 'anchor': list(anchor)} if sampling else {}
    return anchor


def _refuse_bytes_for_the_host(opt: Options, dataset_opt: Options) -> None:
    from basicsr.utils.registry import MODEL_REGISTRY

    if dataset_opt.get('uint8') and MODEL_REGISTRY.get(opt['model_type']).__module__.startswith('basicsr.'):
        raise ValueError(
            f'datasets.{dataset_opt["phase"]}.uint8: {opt["model_type"]} of BasicSR cannot take bytes; use model_type: '
            'EffSRModel, or take uint8 out'
        )


def replacements(opt: Options) -> dict[str, Any]:
    """Name in ``basicsr.train`` -> what to put there, for a run with these options.

    The run itself (``RunState``) becomes the entry ``run_state`` of the options.
    """
    from basicsr.data import build_dataloader as host_loader
    from basicsr.data.data_sampler import EnlargedSampler as HostSampler

    opt['run_state'] = RunState(seed=opt['manual_seed'], made_with=recipe(opt))

    def sampler(dataset: Any, num_replicas: int, rank: int, ratio: float = 1) -> Any:
        if not derives_from_ours(type(dataset)):
            return HostSampler(dataset, num_replicas, rank, ratio)
        return ResumableSampler(dataset, num_replicas, rank, ratio, seed=opt['manual_seed'])

    def loader(dataset: Any, dataset_opt: Options, num_gpu: int = 1, dist: bool = False, **others: Any) -> Any:
        _refuse_bytes_for_the_host(opt, dataset_opt)
        ours = derives_from_ours(type(dataset))
        if dataset_opt['phase'] != 'train':
            return host_loader(dataset, dataset_opt, num_gpu=num_gpu, dist=dist, **others)
        if not ours and opt['train'].get('progressive'):
            raise ValueError(
                f'train.progressive: {type(dataset).__name__} cannot change its patches; use EffSRPairedDataset'
            )
        run: RunState = opt['run_state']  # a resumed one has taken the place of the new one
        for line in run.compare(recipe(opt)):
            warn(line)
        multiplier = 1 if dist else max(num_gpu, 1)
        batch = dataset_opt['batch_size_per_gpu'] * multiplier
        stages = opt['train'].get('progressive')
        if stages and stages.get('batch'):
            stages = {**stages, 'batch': [samples * multiplier for samples in stages['batch']]}
        plan = StagePlan(batch, stages)
        source = others['sampler']
        world = source.num_replicas
        total = int(opt['train']['total_iter'])
        ratio = dataset_opt.get('dataset_enlarge_ratio', 1)
        arguments = (plan, len(dataset), ratio, world, dataset_opt['batch_size_per_gpu'])
        if ours:
            PlannedBatches(source, plan)  # refuses an epoch without a batch, in words
        sampling = {
            'images': len(dataset),
            'ratio': ratio,
            'world_size': source.num_replicas,
            'stages': str(plan.stages),
        }
        anchor = _settle(run, sampling if ours else {}, plan, len(source))
        runs = iterations_that_run(*arguments, total, anchor)
        if runs < total:
            raise ValueError(
                f'training would end after {runs} of {total} iterations, because the last incomplete batch of every '
                f'epoch is dropped; set dataset_enlarge_ratio to {enlarge_ratio_for(*arguments, total)}'
            )
        if not ours:
            return host_loader(dataset, dataset_opt, num_gpu=num_gpu, dist=dist, **others)
        if dataset_opt.get('prefetch_mode') == 'cpu':
            warn(
                f'datasets.train.prefetch_mode: cpu adds no queue to {type(dataset).__name__}, whose loader processes '
                'read ahead themselves; set num_worker_per_gpu'
            )
        at = (run.resumed['epoch'], run.resumed['iter']) if run.resumed else (0, 0)
        batches = PlannedBatches(source, plan, at, anchor)
        return make_loader(dataset, dataset_opt, batches, multiplier=multiplier)

    return {'load_resume_state': load_resume_state, 'EnlargedSampler': sampler, 'build_dataloader': loader}
