"""Rules of the check on what a run is: its name, its networks and their weights, its GPUs, its logs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from basicsr_effsr._registration import lookup
from basicsr_effsr.options import spec
from basicsr_effsr.options.context import Context, built_from, quiet
from basicsr_effsr.options.problem import Problem, warning
from basicsr_effsr.options.validate import validate
from basicsr_effsr.utils.errors import near, one_line

STATE = {'epoch', 'iter', 'optimizers', 'schedulers'}  # what a training state of BasicSR holds


def top(context: Context) -> Iterator[Problem]:
    """The keys of the file, and the model."""
    opt = context.opt
    others = [key for key in opt if str(key).startswith('network_')]
    yield from validate('', opt, spec.Top, others=[*others, *spec.AT_RUN_TIME[spec.Top]], strict=False)
    name = opt.get('model_type')
    if isinstance(name, str):
        context.model, known = lookup('MODEL', name)
        if context.model is None:
            yield Problem('model_type', f'there is no model {name!r}; {near(name, known)}')
    name = opt.get('name')
    if isinstance(name, str) and (name.strip() in ('', '.', '..') or set(name) & set('/\\')):
        yield Problem('name', f'must be the name of a folder, without slashes, got {name!r}')
    if context.is_train and 'debug' in str(name):
        yield warning('name', 'holds "debug", so BasicSR validates every 8 and prints every iteration')


def networks(context: Context) -> Iterator[Problem]:
    """Every network by its signature, and built without memory for its weights."""
    scale = context.opt.get('scale')
    for key, option in context.opt.items():
        if not str(key).startswith('network_') or option is None:
            continue
        context.nets[key] = None
        cls, found = built_from(key, 'ARCH', option)
        yield from found
        if cls is None or found:
            continue
        try:
            with quiet():
                net = context.nets[key] = network_on_meta(option)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            yield Problem(key, one_line(error))
            continue
        except Exception:  # a foreign network that cannot be built without memory is not at fault
            continue
        upscale = getattr(net, 'upscale', None)
        if isinstance(scale, int) and isinstance(upscale, int) and upscale != scale:
            words = f'must equal scale, got {upscale} and {scale}; say it once: scale: &scale {scale}'
            yield Problem(f'{key}.upscale', words)


def network_on_meta(option: dict[str, Any]) -> Any:
    """The network of the options, without memory for its weights."""
    import torch

    options = dict(option)
    cls, _ = lookup('ARCH', options.pop('type'))
    with torch.device('meta'):
        return cls(**options)


def gpus(context: Context) -> Iterator[Problem]:
    import torch

    number, several = context.opt.get('num_gpu'), context.gpus_of_one_process
    if several > 1 and context.is_train and 'distill' not in getattr(context.model, 'train_keys', ()):
        launch = f'torchrun --nproc_per_node={several} -m basicsr.train -opt ... --launcher pytorch'
        words = f'{several} GPUs without a launcher multiply the batch by {several} in one process; {launch} is faster'
        yield warning('num_gpu', words)
    there = torch.cuda.device_count()
    if isinstance(number, int) and number > there:
        words = f'asks for {number} GPUs and {there} are visible; use auto, or 0 for the CPU'
        yield Problem('num_gpu', words, fatal=context.about_to_run)


def path(context: Context) -> Iterator[Problem]:
    """Keys of ``path``: BasicSR makes a folder of whatever it does not know."""
    labels = [str(key).removeprefix('network_') for key in context.opt if str(key).startswith('network_')]
    stems = ('pretrain_network', 'param_key', 'strict_load')
    others = [f'{stem}_{label}' for stem in stems for label in labels]
    yield from validate('path', context.section('path'), spec.Path, others=[*others, *spec.AT_RUN_TIME[spec.Path]])


def weights(context: Context) -> Iterator[Problem]:
    """Training state and weights that are named: there, readable, of the network."""
    section = context.section('path')
    state = section.get('resume_state')
    if state and context.is_train:
        yield from _training_state(Path(state).expanduser())
    for key, net in context.nets.items():
        label = key.removeprefix('network_')
        where = f'path.pretrain_network_{label}'
        file = section.get(f'pretrain_network_{label}')
        if file is None:
            if label == 'g' and not context.is_train:
                yield warning(where, 'is not given, so the test runs with random weights')
        elif isinstance(file, str) and (label != 't' or context.is_train):
            yield from _checkpoint(context, where, label, Path(file).expanduser(), net)


def _training_state(file: Path) -> Iterator[Problem]:
    import torch

    if not file.is_file():
        yield Problem('path.resume_state', f'{file} does not exist; check the path, or use --auto_resume')
        return
    try:
        state = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that is damaged or of another kind
        yield Problem('path.resume_state', f'{file} cannot be read as a training state ({type(error).__name__})')
        return
    if not isinstance(state, dict) or not set(state) >= STATE:
        words = f'{file} must hold {", ".join(sorted(STATE))}; the weights of a network belong to pretrain_network_g'
        yield Problem('path.resume_state', words)


def _resuming(context: Context) -> bool:
    section = context.section('path')
    states = section.get('training_states')
    begun = context.opt.get('auto_resume') and isinstance(states, str) and any(Path(states).glob('*.state'))
    return context.is_train and bool(section.get('resume_state') or begun)


def _checkpoint(context: Context, where: str, label: str, file: Path, net: Any) -> Iterator[Problem]:
    from basicsr_effsr.weights.checkpoint import CheckpointError, mismatch, read_state_dict

    section, fatal = context.section('path'), not _resuming(context)
    try:
        state = read_state_dict(file, section.get(f'param_key_{label}', 'params' if label == 'g' else None), net)
    except FileNotFoundError:
        yield Problem(where, f'{file} does not exist; check the path, or train or download it first', fatal)
        return
    except CheckpointError as error:
        yield Problem(where, str(error), fatal)
        return
    misfit = mismatch(net, state) if net is not None else ''
    if not misfit:
        return
    if section.get(f'strict_load_{label}', True):
        yield Problem(where, f'{file} does not fit {type(net).__name__}: {misfit}', fatal)
        return
    own = net.state_dict()
    fitting = sum(n in own and own[n].shape == t.shape for n, t in state.items())
    if fitting:
        words = f'{fitting} of {len(own)} parameters will be loaded, the others stay as initialised ({misfit})'
        yield warning(where, words)
    else:
        words = f'{file} shares no parameter with {type(net).__name__}: check network_{label}.type'
        yield Problem(where, words, fatal)


def logger(context: Context) -> Iterator[Problem]:
    """What is logged, and that the libraries for it are there."""
    if not context.is_train or not context.fine('logger'):
        return
    section = context.section('logger')
    if not section:
        yield Problem('logger', 'is missing: BasicSR reads print_freq, save_checkpoint_freq and use_tb_logger')
        return
    yield from validate('logger', section, spec.Logger, strict=False)
    if 'debug' in str(context.opt.get('name')):
        return  # BasicSR opens neither
    boards = section.get('use_tb_logger')
    if boards and find_spec('tensorboard') is None:
        yield Problem('logger.use_tb_logger', 'needs TensorBoard, which is not installed; pip install tensorboard')
    if context.section('logger', 'wandb').get('project') is not None:
        if boards is not True:
            yield Problem('logger.wandb', 'needs use_tb_logger: true, from which it takes its curves')
        if find_spec('wandb') is None:
            yield Problem('logger.wandb.project', 'needs Weights & Biases, which is not installed; pip install wandb')
