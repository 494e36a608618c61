"""What may stand in an option file: the one table behind ``effsr check`` and the JSON schema for editors.

Networks, losses, schedulers and metrics are not listed here: their options are read off the signatures.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any


@dataclass(frozen=True)
class Key:
    """One option.

    Attributes:
        kinds: what it may be: 'int', 'number', 'bool', 'str', 'list', 'dict'; null is always allowed unless required.
        doc: one line for people.
        choices: the only values, if not empty.
        required: it must be there.
        least: smallest number, or smallest element of a list of numbers.
        above: numbers must be greater.
        below: numbers must be smaller.
        of: kinds of the elements of a list; empty says nothing about them.
    """

    kinds: tuple[str, ...]
    doc: str
    choices: tuple[Any, ...] = ()
    required: bool = False
    least: float | None = None
    above: float | None = None
    below: float | None = None
    of: tuple[str, ...] = ()


Section = Mapping[str, Key]

INT, NUMBER, BOOL, STR, LIST, DICT = (('int',), ('number',), ('bool',), ('str',), ('list',), ('dict',))

TOP: Section = {
    'name': Key(STR, 'Name of the experiment and of its folder; "debug" in it changes the frequencies.', required=True),
    'model_type': Key(
        STR, 'Class that trains and tests: EffSRModel, DistillationModel, or one of BasicSR.', required=True
    ),
    'scale': Key(INT, 'Scale factor of paired data sets; must be network_g.upscale.', least=1),
    'num_gpu': Key(('int', 'str'), 'GPUs without a launcher; auto = all visible, 0 = CPU.', required=True, least=0),
    'manual_seed': Key(INT, 'Seed of weights and draws; left out, one is drawn.', least=0, below=2**32),
    'datasets': Key(DICT, 'Data sets by phase: train, val, val_2, test_1 ...', required=True),
    'network_g': Key(DICT, 'The network that is trained or tested.', required=True),
    'network_t': Key(DICT, 'The frozen teacher of DistillationModel.'),
    'path': Key(DICT, 'Weights and states to start from.', required=True),
    'train': Key(DICT, 'How it is trained.'),
    'val': Key(DICT, 'How it is validated.'),
    'logger': Key(DICT, 'What is logged and saved, and how often.'),
    'dist_params': Key(DICT, 'Backend and port of a slurm launch.'),
    'find_unused_parameters': Key(BOOL, 'Handed to DistributedDataParallel.'),
    'use_static_graph': Key(BOOL, 'Handed to DistributedDataParallel (BasicSR head).'),
}
AT_RUN_TIME = ('dist', 'rank', 'world_size', 'auto_resume', 'is_train', 'root_path')  # added by the host

DATASET: Section = {
    'name': Key(STR, 'Name in logs and in the folder of saved images.', required=True),
    'type': Key(STR, 'Class of the data set.', required=True),
    'dataroot_gt': Key(STR, 'Folder, LMDB or pack of HR images.'),
    'dataroot_lq': Key(STR, 'Folder, LMDB or pack of LR images.', required=True),
    'meta_info_file': Key(STR, 'Text file that names the HR images to be used, one per line.'),
    'filename_tmpl': Key(STR, 'Name of the LR image made from that of the HR image, such as {}x4.'),
    'io_backend': Key(DICT, 'Where the images lie.'),
    'color': Key(STR, 'y: train on the luma channel only.', ('y', 'rgb')),
    'mean': Key(LIST, 'Subtracted from every channel; needs std.', of=NUMBER),
    'std': Key(LIST, 'Every channel is divided by it; needs mean.', above=0, of=NUMBER),
    'gt_size': Key(INT, 'Side of the HR patch, a multiple of scale.', least=1),
    'use_hflip': Key(BOOL, 'Flip patches at random.'),
    'use_rot': Key(BOOL, 'Turn patches by 90 degrees at random.'),
    'uint8': Key(BOOL, 'Hand over bytes; the model converts them on the device (data sets of this package).'),
    'num_worker_per_gpu': Key(INT, 'Processes that read data.', least=0),
    'batch_size_per_gpu': Key(INT, 'Patches per GPU and iteration.', least=1),
    'dataset_enlarge_ratio': Key(NUMBER, 'The data set is repeated so often in an epoch.', above=0),
    'use_shuffle': Key(BOOL, 'Read by nobody; BasicSR templates carry it.'),
    'prefetch_mode': Key(STR, 'Null, cpu or cuda (needs pin_memory).', ('cpu', 'cuda')),
    'num_prefetch_queue': Key(INT, 'Length of the queue of prefetch_mode cpu.', least=1),
    'pin_memory': Key(BOOL, 'Put batches in page-locked memory.'),
    'persistent_workers': Key(BOOL, 'Keep the reading processes from epoch to epoch.'),
    'phase': Key(STR, 'Set by the host.'),
    'scale': Key(INT, 'Set by the host.'),
}
IO_BACKEND: Section = {
    'type': Key(STR, 'disk for folders, lmdb for LMDB.', ('disk', 'lmdb', 'memcached'), True),
    'db_paths': Key(LIST, 'Set by the host.'),
    'client_keys': Key(LIST, 'Set by the host.'),
    'server_list_cfg': Key(STR, 'For memcached.'),
    'client_cfg': Key(STR, 'For memcached.'),
    'sys_path': Key(STR, 'For memcached.'),
}
PATH: Section = {
    'pretrain_network_g': Key(STR, 'Weights to start from, or to test.'),
    'param_key_g': Key(STR, 'Entry of that file: params, params_ema; null = the file itself.'),
    'strict_load_g': Key(BOOL, 'Every parameter must be there and fit.'),
    'pretrain_network_t': Key(STR, 'Weights of the teacher.'),
    'param_key_t': Key(STR, 'Entry of that file.'),
    'strict_load_t': Key(BOOL, 'Every parameter of the teacher must be there and fit.'),
    'resume_state': Key(STR, 'Training state (.state) to continue from.'),
    'ignore_resume_networks': Key(LIST, 'Networks whose weights are not taken from the state: [network_t].'),
    'experiments_root': Key(STR, 'Where experiments go (BasicSR head); otherwise set by the host.'),
    'results_root': Key(STR, 'Where results go (BasicSR head); otherwise set by the host.'),
}
PATH_AT_RUN_TIME = ('models', 'training_states', 'log', 'visualization')
HARMLESS_IN_PATH = ('strict_load', 'pretrain_network', 'resume', 'param_key')  # the host makes folders of all others

TRAIN: Section = {
    'total_iter': Key(('int', 'number'), 'Iterations of the run.', required=True, least=1),
    'warmup_iter': Key(INT, 'Iterations of linear warm-up; -1 = none.', least=-1),
    'ema_decay': Key(NUMBER, 'Decay of the moving average of the weights; 0 = none.', least=0, below=1),
    'optim_g': Key(DICT, 'Optimizer: type and its options.', required=True),
    'scheduler': Key(DICT, 'Learning rate: type and its options.', required=True),
    'pixel_opt': Key(DICT, 'Loss on pixels, logged as l_pix.'),
    'perceptual_opt': Key(DICT, 'Loss on features, logged as l_percep.'),
    'losses': Key(DICT, 'Losses by log name (l_...): EffSRModel.'),
    'amp': Key(('str', 'bool'), 'Half precision: EffSRModel.', ('bf16', 'fp16', False)),
    'channels_last': Key(BOOL, 'Memory format of images and weights: EffSRModel.'),
    'compile': Key(('bool', 'dict'), 'torch.compile, or its options: EffSRModel.'),
    'grad_clip': Key(NUMBER, 'Largest norm of the gradient: EffSRModel.', above=0),
    'accumulate': Key(INT, 'The batch is worked off in so many parts: EffSRModel.', least=1),
    'max_nonfinite': Key(INT, 'So many infinite or NaN iterations in a row stop the run: EffSRModel.', least=1),
    'progressive': Key(DICT, 'Patch sizes in stages: EffSRModel.'),
    'distill': Key(DICT, 'Teacher terms: DistillationModel.'),
}
PROGRESSIVE: Section = {
    'gt_size': Key(LIST, 'Side of the HR patch of each stage.', required=True, least=1, of=INT),
    'iters': Key(LIST, 'Iterations of each stage.', required=True, least=1, of=INT),
    'batch': Key(LIST, 'Patches per GPU of each stage.', least=1, of=INT),
}
DISTILL: Section = {
    'alpha': Key(NUMBER, "Weight of L1 to the teacher's image."),
    'beta': Key(NUMBER, 'Weight of L1 to the ground truth.'),
    'gamma': Key(NUMBER, 'Weight of the feature loss.'),
    'feature_pairs': Key(DICT, 'Submodule of the student: submodule of the teacher.'),
    'feature_loss': Key(DICT, 'Loss between the features of a pair.'),
    'adapter': Key(STR, "From the student's channels to the teacher's.", ('none', 'conv1x1')),
    'teacher_dtype': Key(STR, 'Precision of the teacher.', ('fp32', 'bf16', 'fp16')),
}
COMPILE: Section = {
    'mode': Key(STR, 'Of torch.compile.', ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')),
    'backend': Key(STR, 'Of torch.compile.'),
    'fullgraph': Key(BOOL, 'Refuse graph breaks.'),
    'dynamic': Key(BOOL, 'Make kernels for any size.'),
    'options': Key(DICT, 'Of the backend.'),
    'disable': Key(BOOL, 'Compile nothing.'),
}
OPTIMIZER: Section = {
    'type': Key(STR, 'Optimizer.', required=True),
    'lr': Key(NUMBER, 'Learning rate.', above=0),
    'weight_decay': Key(NUMBER, 'Decay of the weights.', least=0),
    'betas': Key(LIST, 'Decay of the moments.', least=0, below=1, of=NUMBER),
}
# optimizers of torch.optim that need no closure, and their options in any version, but for lr; for editors only:
# the check itself asks the torch that is installed
_SWITCHES = 'foreach maximize differentiable capturable'
OPTIMIZERS = {
    name: ('lr', *options.split())
    for name, options in {
        'ASGD': f'lambd alpha t0 weight_decay {_SWITCHES}',
        'Adadelta': f'rho eps weight_decay {_SWITCHES}',
        'Adafactor': 'beta2_decay eps d weight_decay foreach maximize',
        'Adagrad': 'lr_decay weight_decay initial_accumulator_value eps foreach maximize differentiable fused',
        'Adam': f'betas eps weight_decay amsgrad decoupled_weight_decay fused {_SWITCHES}',
        'AdamW': f'betas eps weight_decay amsgrad fused {_SWITCHES}',
        'Adamax': f'betas eps weight_decay {_SWITCHES}',
        'Muon': 'weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn',
        'NAdam': f'betas eps weight_decay momentum_decay decoupled_weight_decay {_SWITCHES}',
        'RAdam': f'betas eps weight_decay decoupled_weight_decay {_SWITCHES}',
        'RMSprop': f'alpha eps weight_decay momentum centered {_SWITCHES}',
        'Rprop': f'etas step_sizes {_SWITCHES}',
        'SGD': 'momentum dampening weight_decay nesterov foreach maximize differentiable fused',
        'SparseAdam': 'betas eps maximize',
    }.items()
}
SCHEDULE: Section = {
    'milestones': Key(LIST, 'Iterations at which the learning rate falls.', required=True, of=NUMBER),
    'gamma': Key(NUMBER, 'To this part.'),
    'restarts': Key(LIST, 'Iterations of restarts.', of=NUMBER),
    'periods': Key(LIST, 'Iterations of each period.', required=True, above=0, of=NUMBER),
    'restart_weights': Key(LIST, 'Factor of the learning rate after each restart.', of=NUMBER),
    'eta_min': Key(NUMBER, 'Least learning rate.', least=0),
}
VAL: Section = {
    'val_freq': Key(('int', 'number'), 'Iterations between validations.', least=1),
    'save_img': Key(BOOL, 'Save the images.'),
    'suffix': Key(STR, 'Put behind the names of saved images.'),
    'pbar': Key(BOOL, 'Progress bar.'),
    'metrics': Key(DICT, 'Scores by name.'),
    'self_ensemble': Key(BOOL, 'Mean over the eight flips and turns: EffSRModel.'),
    'tile': Key(DICT, 'Validate in tiles: EffSRModel.'),
    'fuse': Key(BOOL, 'Validate the deployed form of nets that have one: EffSRModel.'),
}
TILE: Section = {
    'size': Key(INT, 'Side of a tile in LR pixels.', required=True, least=1),
    'overlap': Key(INT, 'LR pixels that neighbours share.', least=0),
    'blend': Key(STR, 'How they are joined.', ('mean', 'feather', 'halo')),
}
LOGGER: Section = {
    'print_freq': Key(('int', 'number'), 'Iterations between lines of the log.', required=True, least=1),
    'save_checkpoint_freq': Key(('int', 'number'), 'Iterations between checkpoints.', required=True, least=1),
    'use_tb_logger': Key(BOOL, 'Write tensorboard files.', required=True),
    'wandb': Key(DICT, 'project and resume_id of Weights & Biases.'),
}
WANDB: Section = {
    'project': Key(STR, 'Name of the project; null = no Weights & Biases.'),
    'resume_id': Key(STR, 'Run to go on with.'),
}
METRIC_EXTRAS: Section = {
    'type': Key(STR, 'Function that computes it.', required=True),
    'better': Key(STR, 'Which of two values is the better one.', ('higher', 'lower')),
}
SCHEDULERS = {
    'MultiStepLR': 'MultiStepRestartLR',
    'MultiStepRestartLR': 'MultiStepRestartLR',
    'CosineAnnealingRestartLR': 'CosineAnnealingRestartLR',
}
PAIRED = ('PairedImageDataset', 'EffSRPairedDataset', 'PackedPairedImageDataset')  # data sets whose keys are DATASET

_KIND_OF = {int: 'int', float: 'number', bool: 'bool', str: 'str', dict: 'dict', list: 'list', tuple: 'list'}


def kinds_of(annotation: Any) -> tuple[str, ...]:
    """The kinds that a type annotation allows; empty if it says nothing."""
    if annotation in (inspect.Parameter.empty, Any, NoneType):
        return ()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, UnionType):
        return tuple(dict.fromkeys(kind for part in typing.get_args(annotation) for kind in kinds_of(part)))
    if origin is typing.Literal:
        return tuple(dict.fromkeys(_KIND_OF[type(value)] for value in typing.get_args(annotation)))
    base = origin or annotation
    if base in _KIND_OF:
        return (_KIND_OF[base],)
    if isinstance(base, type) and issubclass(base, Mapping):
        return DICT
    if isinstance(base, type) and issubclass(base, Sequence):
        return LIST
    return ()


def keys_of(target: Callable, skip: Sequence[str] = ()) -> tuple[dict[str, Key], bool]:
    """Options of a class or function as its signature has them, and whether it takes any others too.

    Args:
        target: a network, loss, scheduler or metric.
        skip: parameters that no option file gives, such as the optimizer of a scheduler.
    """
    try:
        signature = inspect.signature(target, eval_str=True)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        signature = inspect.signature(target)
    keys, open_ended = {}, False
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            open_ended = open_ended or parameter.kind is parameter.VAR_KEYWORD
        elif name not in skip:
            needed = parameter.default is parameter.empty
            kinds = kinds_of(parameter.annotation) if not isinstance(parameter.annotation, str) else ()
            if not kinds and not needed and type(parameter.default) in _KIND_OF:
                kinds = (_KIND_OF[type(parameter.default)],)
                kinds = ('number',) if kinds == INT else kinds  # a default of 0 says nothing about 0.5
            doc = '' if needed or parameter.default is None else f'Default: {parameter.default}.'
            keys[name] = Key(kinds, doc, required=needed)
    return keys, open_ended


def fits(value: Any, key: Key) -> bool:
    """True if ``value`` is of one of the kinds of ``key``."""
    if value is None or not key.kinds:
        return True
    if isinstance(value, bool):
        return 'bool' in key.kinds
    if isinstance(value, int):
        return 'int' in key.kinds or 'number' in key.kinds
    if isinstance(value, float):
        return 'number' in key.kinds
    if isinstance(value, str):
        return 'str' in key.kinds
    if isinstance(value, Mapping):
        return 'dict' in key.kinds
    if 'list' not in key.kinds or not isinstance(value, Sequence):
        return False
    return all(item is not None and fits(item, Key(key.of, '')) for item in value) if key.of else True


def in_range(value: Any, key: Key) -> bool:
    """True if the numbers of ``value``, which fits ``key``, keep to its bounds; infinity and NaN keep to none."""
    if key.least is None and key.above is None and key.below is None:
        return True
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return all(
        math.isfinite(n)
        and (key.least is None or n >= key.least)
        and (key.above is None or n > key.above)
        and (key.below is None or n < key.below)
        for n in numbers
        if isinstance(n, int | float) and not isinstance(n, bool)
    )


def range_in_words(key: Key) -> str:
    """The bounds of ``key``, which has some."""
    words = [
        *([f'at least {key.least:g}'] if key.least is not None else []),
        *([f'greater than {key.above:g}'] if key.above is not None else []),
        *([f'less than {key.below:.10g}'] if key.below is not None else []),
    ]
    return ' and '.join(words)
