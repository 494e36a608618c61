"""The schema of option files: one typed model per section, for the check, the JSON schema and docs/options.md.

Options of networks, losses, optimizers, schedulers and metrics are read off their signatures (``signatures.py``).
A type without ``None`` says that the host, or the class that reads the key, does not accept null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(name: str) -> str:
    if len(name.encode(errors='replace')) > MAX_NAME:
        raise ValueError(f'longer than {MAX_NAME} bytes')
    return name


MAX_NAME = 200  # bytes in UTF-8, of 255 that a file may have: logs, locks and archived folders add to it
MAX_NONFINITE = 10  # iterations in a row; one or two may be a broken batch, ten in a row never end by themselves
WHOLE = BeforeValidator(_whole)  # after the bounds, which the schema loses otherwise
Count = Annotated[int, WHOLE]  # 300000, or !!float 3e5
Natural = Annotated[int, Field(ge=0), WHOLE]
Positive = Annotated[int, Field(ge=1), WHOLE]
# of a folder or a file: nothing that leads elsewhere, on a system that drops blanks and dots at the end either
Name = Annotated[str, Field(pattern=r'^([^/\\ \x00-\x1f][^/\\\x00-\x1f]*)?[^/\\. \x00-\x1f]$'), AfterValidator(_short)]


def _plainly(schema: dict[str, Any]) -> None:
    """Takes out the titles that pydantic makes of names, and defaults that say nothing."""
    for part in (schema, *schema.get('properties', {}).values()):
        part.pop('title', None)
        if part.get('default', ...) is None:
            del part['default']


class Section(BaseModel):
    """A section of an option file: nothing but its keys, and no value converted."""

    model_config = ConfigDict(
        extra='forbid', strict=True, allow_inf_nan=False, protected_namespaces=(), json_schema_extra=_plainly
    )


def needed(description: str, **bounds: Any) -> Any:
    """A key that must be there."""
    return Field(description=description, **bounds)


def key(description: str, **bounds: Any) -> Any:
    """A key that may be left out."""
    return Field(None, description=description, **bounds)


def fields(section: type[Section]) -> dict[str, FieldInfo]:
    """The keys of a section as an option file has them."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


class Top(Section):
    name: Name = needed('Name of the experiment and of its folder; "debug" in it changes the frequencies.')
    model_type: str = needed('Class that trains and tests: EffSRModel, DistillationModel, or one of BasicSR.')
    # BasicSR takes these three out of the file before anything can make an integer of 4.0
    scale: Annotated[int, Field(ge=1)] | None = key('Scale factor of paired data sets; must equal network_g.upscale.')
    num_gpu: Annotated[int, Field(ge=0)] | Literal['auto'] = needed('GPUs without a launcher; auto = all, 0 = CPU.')
    manual_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = key(
        'Seed of weights and random draws; default: random.'
    )
    datasets: dict[Any, Any] = needed('Data sets by phase: train, val, val_2, test_1 ...')
    network_g: dict[Any, Any] = needed('The network that is trained or tested.')
    network_t: dict[Any, Any] | None = key('The frozen teacher of DistillationModel.')
    path: dict[Any, Any] = needed('Weights and states to start from.')
    train: dict[Any, Any] | None = key('How the network is trained.')
    val: dict[Any, Any] | None = key('How the network is validated.')
    logger: dict[Any, Any] | None = key('What is logged and saved, and how often.')
    dist_params: dict[Any, Any] | None = key('Backend and port of a slurm launch.')
    find_unused_parameters: bool | None = key('Passed to DistributedDataParallel.')
    use_static_graph: bool | None = key('Passed to DistributedDataParallel (BasicSR head).')


class IOBackend(Section):
    type: Literal['disk', 'lmdb', 'memcached'] = needed('disk for image folders, lmdb for LMDBs.')
    server_list_cfg: str = key('Server list of memcached.')
    client_cfg: str = key('Client configuration of memcached.')
    sys_path: str | None = key('Path appended to sys.path for memcached.')


class Dataset(Section):
    """PairedImageDataset, EffSRPairedDataset, PackedPairedImageDataset."""

    name: Name = needed('Name in logs and of the folder of saved images.')
    type: str = needed('Class of the data set.')
    dataroot_gt: str = needed('Folder, LMDB or pack of HR images.')
    dataroot_lq: str = needed('Folder, LMDB or pack of LR images; bicubic makes them of the HR images of a folder.')
    meta_info_file: str | None = key('Text file that lists the HR images to use, one per line.')
    filename_tmpl: str = key('Name of the LR image, built from that of the HR image: {}x4.', pattern=r'\{.*\}')
    io_backend: dict[Any, Any] | None = key('How the images are stored.')
    color: Literal['y', 'rgb'] | None = key('y: train on the luma channel only.')
    mean: list[float] | None = key('Subtracted from each channel; needs std.')
    std: list[Annotated[float, Field(gt=0)]] | None = key('Divisor of each channel; needs mean.')
    gt_size: Count = key('Side of the HR patch in pixels, a multiple of scale.', ge=1)
    use_hflip: bool | None = key('Flip patches at random.')
    use_rot: bool | None = key('Rotate patches by 90 degrees at random.')
    uint8: bool | None = key('Load bytes, converted to float on the device (data sets of this package).')
    num_worker_per_gpu: Count = key('Data loading processes per GPU.', ge=0)
    batch_size_per_gpu: Count = key('Patches per GPU and iteration.', ge=1)
    dataset_enlarge_ratio: float = key('How many times an epoch repeats the data set.', gt=0)
    use_shuffle: bool | None = key('Ignored; present in BasicSR templates.')
    prefetch_mode: Literal['cpu', 'cuda'] | None = key('Prefetching of batches; cuda needs pin_memory.')
    num_prefetch_queue: Count = key('Length of the queue of prefetch_mode: cpu.', ge=1)
    pin_memory: bool | None = key('Put batches in page-locked memory.')
    persistent_workers: bool | None = key('Keep data loading processes alive between epochs.')


class Path(Section):
    pretrain_network_g: str | None = key('Weights to start from, or to test: a file, or zoo://NAME.')
    param_key_g: str | None = key('Entry of that file: params, params_ema; null = the file itself.')
    strict_load_g: bool | None = key('Every parameter must be in the file and fit.')
    pretrain_network_t: str | None = key('Weights of the teacher: a file, or zoo://NAME.')
    param_key_t: str | None = key('Entry of that file; null = the best there is.')
    strict_load_t: bool | None = key('Every parameter of the teacher must be in the file and fit.')
    resume_state: str | None = key('Training state (.state) to continue from.')
    ignore_resume_networks: list[str] | None = key('Networks whose weights are not loaded when resuming.')
    experiments_root: str | None = key('Folder of experiments (BasicSR head).')
    results_root: str | None = key('Folder of results (BasicSR head).')


class Progressive(Section):
    gt_size: list[Positive] = needed('Side of the HR patch in each stage.', min_length=1)
    iters: list[Positive] = needed('Iterations of each stage.', min_length=1)
    batch: list[Positive] | None = key('Patches per GPU and iteration in each stage.')


class Distill(Section):
    alpha: float = key("Weight of the L1 loss to the teacher's image (0.5).", ge=0)
    beta: float = key('Weight of the L1 loss to the HR image (0.5).', ge=0)
    gamma: float = key('Weight of the feature loss (10 / 255).', ge=0)
    feature_pairs: dict[str, str] | None = key('Submodule of the student: submodule of the teacher.')
    feature_loss: dict[Any, Any] | None = key('Loss between the features of a pair.')
    adapter: Literal['none', 'conv1x1'] | None = key("Maps the student's channels to the teacher's.")
    teacher_dtype: Literal['fp32', 'bf16', 'fp16'] | None = key('Precision of the teacher.')


class Compile(Section):
    """Options of torch.compile."""

    mode: Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] | None = key(
        'How much is optimised, and how long compiling takes.'
    )
    backend: str | SkipJsonSchema[Callable[..., Any]] = key('Compiler backend.')  # a function from Python only
    fullgraph: bool | None = key('Raise an error at graph breaks.')
    dynamic: bool | None = key('Compile kernels for any input size.')
    options: dict[Any, Any] | None = key('Options of the backend.')
    disable: bool | None = key('Turn compiling off.')


class Train(Section):
    total_iter: Count = needed('Iterations of the run.', ge=1)
    warmup_iter: Count = key('Iterations of linear warm-up; -1 = none.', ge=-1)
    ema_decay: float = key('Decay of the moving average of the weights; 0 = none.', ge=0, lt=1)
    optim_g: dict[Any, Any] = needed('Optimizer: type and its options.')
    scheduler: dict[Any, Any] = needed('Learning rate schedule: type and its options.')
    pixel_opt: dict[Any, Any] | None = key('Pixel loss, logged as l_pix.')
    perceptual_opt: dict[Any, Any] | None = key('Perceptual loss, logged as l_percep.')
    losses: dict[Any, Any] | None = key('Losses by log name (l_...).')
    amp: Literal['bf16', 'fp16', False] | None = key('Mixed precision training.')
    channels_last: bool | None = key('Channels-last memory format of images and weights.')
    compile: bool | Compile | None = key('torch.compile the network: true, or options.')
    use_checkpoint: bool | None = key('Activation checkpointing: less memory, blocks are computed twice.')
    grad_clip: float | None = key('Largest norm of the gradient; 0 = off.', ge=0)
    accumulate: Positive | None = key('Gradient accumulation: number of parts of each batch.')
    max_nonfinite: Natural | None = key(
        f'Stop after this many skipped iterations (infinite or NaN) in a row ({MAX_NONFINITE}); 0 = no.'
    )
    progressive: Progressive | None = key('Progressive training: patch sizes in stages.')
    distill: Distill | None = key('Terms of the teacher.')


class Optimizer(Section):
    """Keys of optimizers with a bound; the others are read off the signature."""

    type: str = needed('Class of torch.optim.')
    lr: float = needed('Learning rate.', gt=0)
    weight_decay: float = key('Weight decay.', ge=0)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = key(
        'Decay rates of the moving averages.', min_length=2, max_length=2
    )


class Scheduler(Section):
    """Keys of schedulers with a bound."""

    milestones: list[float] = needed('Iterations at which the learning rate is multiplied by gamma.')
    gamma: float = key('Factor applied to the learning rate at each milestone.')
    restarts: list[float] = key('Iterations of restarts.')
    periods: list[Annotated[float, Field(gt=0)]] = needed('Iterations of each cosine period.')
    restart_weights: list[float] = key('Factor applied to the learning rate after each restart.')
    eta_min: float = key('Smallest learning rate.', ge=0)


class Tile(Section):
    size: Count = needed('Side of a tile in LR pixels.', ge=1)
    overlap: Count = key('LR pixels that neighbouring tiles share.', ge=0)
    blend: Literal['mean', 'feather', 'halo'] = key('How overlapping tiles are joined.')


class Val(Section):
    val_freq: Count = key('Iterations between validations.', ge=1)
    save_img: bool | None = needed('Save the images.')
    suffix: Name | None = key('Suffix of the names of saved images.')
    pbar: bool | None = key('Show a progress bar.')
    metrics: dict[Any, Any] | None = key('Metrics by name.')
    self_ensemble: bool | None = key('Average over the eight flips and rotations.')
    tile: Tile | None = key('Validate in tiles.')
    log_images: Count = key('Images per set written to TensorBoard at each validation: enlarged LR, SR, HR (0).', ge=0)
    fuse: bool | None = key('Validate the fused form of networks that have one (true).')
    engine: Literal['auto', 'torch', 'compile', 'onnxruntime', 'openvino'] | None = key(
        'Engine of the network (torch); auto: the fastest with the same image, torch while training.'
    )


class Metric(Section):
    """Keys that every metric has beside those of its function."""

    type: str = needed('Function that computes it.')
    better: Literal['higher', 'lower'] = key('Whether a higher or a lower value is better.')


class CroppedMetric(Metric):
    crop_border: Count = needed('Pixels cropped from each side.', ge=0)


class Wandb(Section):
    project: str | None = key('Name of the project; null = no Weights & Biases.')
    resume_id: str | None = key('Run to continue.')


class Logger(Section):
    print_freq: Count = needed('Iterations between lines of the log.', ge=1)
    save_checkpoint_freq: Count = needed('Iterations between checkpoints.', ge=1)
    use_tb_logger: bool | None = needed('Write TensorBoard files.')
    wandb: Wandb | None = key('Weights & Biases.')


# Keys that the host adds to a parsed file.
AT_RUN_TIME: Mapping[type[Section], tuple[str, ...]] = {
    Top: ('dist', 'rank', 'world_size', 'auto_resume', 'is_train', 'root_path'),
    Dataset: ('phase', 'scale'),
    IOBackend: ('db_paths', 'client_keys'),
    Path: ('models', 'training_states', 'log', 'visualization'),
}
# What BasicSR's SRModel reads; our model classes say it in train_keys and val_keys.
HOST_TRAIN = frozenset('total_iter warmup_iter ema_decay optim_g scheduler pixel_opt perceptual_opt'.split())
HOST_VAL = frozenset('val_freq save_img suffix pbar metrics'.split())
LOGGED = {'l_pix': 'pixel_opt', 'l_percep': 'perceptual_opt'}  # log name -> key of BasicSR's own losses
LOSSES = ('losses', *LOGGED.values())
PAIRED = ('PairedImageDataset', 'EffSRPairedDataset', 'PackedPairedImageDataset')
SCHEDULERS = {
    'MultiStepLR': 'MultiStepRestartLR',
    'MultiStepRestartLR': 'MultiStepRestartLR',
    'CosineAnnealingRestartLR': 'CosineAnnealingRestartLR',
}


def needed_by(kind: str, training: bool) -> tuple[str, ...]:
    """Keys of ``Dataset`` that a paired data set of this type must have beyond those of all."""
    keys = [] if 'Packed' in kind else ['io_backend']
    if training:
        keys += ['gt_size', 'batch_size_per_gpu', 'num_worker_per_gpu']
        keys += ['use_hflip', 'use_rot'] if kind.removesuffix('_effsr') == 'PairedImageDataset' else []
    return tuple(keys)


def losses_of(train: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(place, log name, option) of every loss; under other keys that end in _opt it has no log name."""
    names = {key: name for name, key in LOGGED.items()}
    for key, option in train.items():
        if str(key).endswith('_opt') and option is not None:
            yield f'train.{key}', names.get(key, ''), option
    named, distill = train.get('losses'), train.get('distill')
    for name, option in named.items() if isinstance(named, dict) else ():
        if option is not None:
            yield f'train.losses.{name}', name, option
    if isinstance(distill, dict) and distill.get('feature_loss') is not None:
        yield 'train.distill.feature_loss', '', distill['feature_loss']
