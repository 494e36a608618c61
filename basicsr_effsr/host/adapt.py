"""Every change this package makes to the host, each with its reason and its condition.

Loaded only when BasicSR itself is imported (``_autoload.py``). Nothing else in this package touches
the host's code.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from argparse import ArgumentError, ArgumentParser
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from basicsr_effsr._registration import derives_from_ours, lookup
from basicsr_effsr.host import DEAD_TORCHVISION, OPTIONS, REAL_ESRGAN, REGISTRY, VERSION
from basicsr_effsr.utils.errors import UserError

if TYPE_CHECKING:
    from basicsr_effsr.options.problem import Problem


class HookedLoader:
    """The module's own loader, or none if the host imports a missing module; then ``act`` has the module."""

    def __init__(self, act: Callable[[ModuleType], None], loader: Any = None) -> None:
        self._act, self._loader = act, loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec) if self._loader else None

    def exec_module(self, module: ModuleType) -> None:
        if self._loader:
            self._loader.exec_module(module)
        self._act(module)


def _functional_tensor(module: ModuleType) -> None:
    """torchvision 0.17 removed it, and every release of BasicSR up to 1.4.2 imports it."""
    from torchvision.transforms import functional

    module.__dict__.update({name: value for name, value in vars(functional).items() if not name.startswith('_')})


def _version(module: ModuleType) -> None:
    """Git ignores it, and only BasicSR's setup script writes it: a fresh clone has none."""
    file = Path(str(sys.modules['basicsr'].__file__)).parents[1] / 'VERSION'
    text = file.read_text(encoding='utf-8').strip() if file.is_file() else 'unknown'
    module.__dict__.update(__version__=text, __gitsha__='unknown')


def find_spec(name: str) -> ModuleSpec | None:
    """The spec of a hooked module, so loaded that it is adapted; None if it does not exist."""
    real = importlib.util.find_spec(name)
    if name in FILLS:
        return real or ModuleSpec(name, HookedLoader(FILLS[name]))  # type: ignore[arg-type]
    if real is not None and name in ADAPTATIONS:
        real.loader = HookedLoader(ADAPTATIONS[name], real.loader)  # type: ignore[assignment]
    return real


def adapt_loaded() -> None:
    """Adapts those of the hooked modules that were imported before the hook was installed."""
    for name in [name for name in ADAPTATIONS if name in sys.modules]:
        ADAPTATIONS[name](sys.modules[name])


def _adapt_registry(module: ModuleType) -> None:
    """A missing name, and only that, loads our classes; then the host looks again.

    Reason: BasicSR has no way to discover plugins. Condition: every version; forks included.
    """
    registry = module.Registry
    if getattr(registry.get, '_effsr', False):
        return
    original = registry.get

    @wraps(original)
    def get(self, name, *args, **kwargs):
        if name not in self and f'{name}_basicsr' not in self:
            from basicsr_effsr._registration import register

            register(self._name)
        return original(self, name, *args, **kwargs)

    get._effsr = True  # type: ignore[attr-defined]
    registry.get = get


class _RootedOptions(OrderedDict):
    """The option dictionary with a ``root_path`` that stays what it was first set to.

    Reason: ``train_pipeline`` sets ``opt['root_path']`` to its own folder right after parsing (1.4.2 and head).
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        if key != 'root_path' or key not in self:
            super().__setitem__(key, value)


def installed_by_pip(root_path: str) -> bool:
    """True if the folder that holds BasicSR is ``site-packages`` or the folder of a ``--target`` install."""
    named = {'site-packages', 'dist-packages'} & set(Path(root_path).parts)
    return bool(named) or any(Path(root_path).glob('basicsr-*.dist-info'))


def output_root(root_path: str) -> str:
    """The folder that gets ``experiments/``, ``tb_logger/`` and ``results/``.

    The host takes the parent of its package. Where pip put that, the current directory is taken, which
    is also where ``--auto_resume`` looks.
    """
    return os.getcwd() if installed_by_pip(root_path) else root_path


def uses_our_classes(opt: dict[str, Any]) -> bool:
    """True if the model, a network or a data set of the options is one of this package, or derived from one."""
    data_sets = opt.get('datasets')
    sections = [('MODEL', {'type': opt.get('model_type')})]
    sections += [('ARCH', section) for key, section in opt.items() if key.startswith('network_')]
    sections += [('DATASET', section) for section in (data_sets.values() if isinstance(data_sets, dict) else ())]
    return any(
        isinstance(section, dict) and derives_from_ours(lookup(registry, section.get('type'))[0])
        for registry, section in sections
    )


def _adapt_options(module: ModuleType) -> None:
    """Wraps ``parse_options``, the first thing that training and testing call.

    * ``--local-rank`` is accepted beside ``--local_rank``. Reason: launchers spell it with a dash
      (BasicSR 1.4.2 and head exit with 2).
    * Outputs go to the current directory when BasicSR is installed in site-packages. Reason: the
      host would write there, and ``--auto_resume`` would not find it (1.4.2 and head).
    * ``init_dist`` falls back to gloo without a GPU. Reason: the host divides by zero GPUs.
    * Without ``manual_seed`` all ranks take the seed of rank 0. Reason: the host lets each rank draw
      its own, and a run could not be resumed with all of them (1.4.2 and head).
    * What is no option file, such as a pipe, is refused before it is read, and what the host cannot
      parse is said in a sentence. Reason: the host waits for ever, or ends in a traceback.
    * Python does not warn that ``basicsr.train`` is in ``sys.modules`` before it runs. Reason: BasicSR's ``__init__``
      imports it, so that every start of ``python -m basicsr.train`` says so (1.4.2 and head).
    * If the options name a class of ours they are checked before anything is created, functions of the training module
      are replaced by ours (``loop.py`` says which and why), and the end of a run and what it writes are ours
      (``ending.py``).

    Condition: the module has a ``parse_options(root_path, is_train)``, as every version since 1.3.
    """
    original = getattr(module, 'parse_options', None)
    if original is None or getattr(original, '_effsr', False):
        return

    @wraps(original)
    def parse_options(root_path, is_train=True):
        sys.argv[1:] = ['--local_rank' + a[12:] if a.startswith('--local-rank') else a for a in sys.argv[1:]]
        root = output_root(root_path)
        file, forced = _arguments()
        try:
            opt, args = original(root, is_train=is_train)
        except Exception:
            if file is not None:
                _stop_unread(file, forced, is_train)
            raise
        rooted = _RootedOptions(opt)
        if root != root_path:
            rooted['root_path'] = root
        if uses_our_classes(rooted):
            _take_over(rooted, file, is_train, sys._getframe(1).f_globals)
        return rooted, args

    warnings.filterwarnings('ignore', r".*'basicsr\.(train|test)' found in sys.modules", RuntimeWarning)
    parse_options._effsr = True  # type: ignore[attr-defined]
    module.parse_options = parse_options  # type: ignore[attr-defined]
    if hasattr(module, 'init_dist'):
        from basicsr_effsr.utils.distributed import init_dist

        module.init_dist = init_dist  # type: ignore[attr-defined]
    for user in ('basicsr.train', 'basicsr.test'):  # imported before us, these hold the original
        if getattr(sys.modules.get(user), 'parse_options', None) is original:
            sys.modules[user].parse_options = parse_options  # type: ignore[attr-defined]


def _take_over(opt: dict[str, Any], file: Path | None, is_train: bool, caller: dict[str, Any]) -> None:
    """Checks the options, and puts what the run needs into ``caller``, the variables of the training module."""
    from basicsr_effsr.host.ending import end_in_a_sentence

    end_in_a_sentence()
    from basicsr.utils import set_random_seed

    from basicsr_effsr.host.loop import replacements
    from basicsr_effsr.utils.distributed import from_rank_0

    _stop_on_problems(opt, file, is_train)
    seed = from_rank_0(opt['manual_seed'])
    if seed != opt['manual_seed']:
        opt['manual_seed'] = seed
        set_random_seed(seed + opt['rank'])
    for name, ours in replacements(opt).items():
        if name in caller:
            caller[name] = ours


def _arguments() -> tuple[Path | None, list[str]]:
    """The file of ``-opt``, None if there is none, and what ``--force_yml`` changes of it.

    Ends the run if the file is none that can be read.
    """
    from basicsr_effsr.options.file import option_text

    parser = ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument('-opt', type=Path)
    parser.add_argument('--force_yml', nargs='+', default=[])
    file, forced = None, []
    with suppress(ArgumentError):  # of which the host says what is wrong
        given = parser.parse_known_args()[0]
        file, forced = given.opt, given.force_yml
    if file is not None:
        with _in_a_sentence():
            option_text(file)
    return file, forced


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """Ends the run with what a user can mend."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f'basicsr_effsr: {error}') from error


def _stop_unread(file: Path, forced: list[str], is_train: bool) -> None:
    """Of options that the host could not parse, says what the rules find, if they name a class of ours."""
    from basicsr_effsr.options.check import inspected
    from basicsr_effsr.options.file import force, read_option_file

    with _in_a_sentence():
        options = read_option_file(file)
        if uses_our_classes(options):
            for entry in forced:
                force(options, entry)
            _report(inspected(options, is_train).found, file)


def _stop_on_problems(opt: dict[str, Any], file: Path | None, is_train: bool) -> None:
    """Stops where the rules or, if they find nothing, one dry step find what the run would die of.

    Whole floats become integers where the rules ask for a count. Then it stops where another process writes the
    same folder. One process of a group does it for all.
    """
    from basicsr_effsr.host.dry_run import dry_step, undisturbed
    from basicsr_effsr.host.loop import take_folder
    from basicsr_effsr.options.check import inspected
    from basicsr_effsr.options.file import read_option_file
    from basicsr_effsr.options.problem import adopt
    from basicsr_effsr.utils.distributed import from_all

    with _in_a_sentence():
        if file is not None:  # the host takes the last of two equal keys
            read_option_file(file)
    with undisturbed():  # what logs while it is tried would keep the host from opening its log file
        context = inspected(opt, is_train)
    found = context.found
    if not any(problem.fatal for problem in found):
        adopt(opt, context.opt)
        if opt.get('rank', 0) == 0:
            found += dry_step(opt, is_train)
            if not any(problem.fatal for problem in found):
                found += take_folder(opt)
    ranks = from_all(found)  # each of which may see other files
    stopped = next((i for i, its in enumerate(ranks) if any(problem.fatal for problem in its)), 0)
    _report(ranks[stopped], file, opt.get('rank', 0), stopped)


def _report(found: list[Problem], file: Path | None, rank: int = 0, source: int = 0) -> None:
    """Ends the run if something is fatal, which rank ``source`` has found, otherwise rank 0 prints the warnings."""
    from basicsr_effsr.options.file import with_lines

    found = found if file is None else with_lines(found, file)
    fatal = [problem for problem in found if problem.fatal]
    if fatal:
        which = f'rank {source}: ' * bool(source)
        raise SystemExit('\n'.join(f'basicsr_effsr: {which}{problem}' for problem in fatal))
    for problem in found if rank == 0 else ():
        sys.stderr.write(f'basicsr_effsr: warning: {problem}\n')


def _adapt_real_esrgan(module: ModuleType) -> None:
    """Lets the Real-ESRGAN models run on the CPU.

    Reason: JPEG, sharpening and the pool of pairs go to ``.cuda()`` whatever ``num_gpu`` says, and ``filter2D`` views
    what padding on a CPU leaves in another memory format (1.4.2 and head), so that an option file could be neither
    checked nor tried without a GPU. Condition: there is none.
    """
    import torch

    if torch.cuda.is_available() or getattr(module, '_effsr', False):
        return
    module._effsr = True  # type: ignore[attr-defined]
    stays = {'cuda': lambda self: self}
    for name in ('DiffJPEG', 'USMSharp'):
        setattr(module, name, type(name, (getattr(module, name),), stays))
    filter2d = module.filter2D
    module.filter2D = lambda img, kernel: filter2d(img.contiguous(), kernel)  # type: ignore[attr-defined]
    model = next(cls for cls in vars(module).values() if '_dequeue_and_enqueue' in getattr(cls, '__dict__', ()))
    original = model._dequeue_and_enqueue

    @wraps(original)
    def with_pool(self):
        if not hasattr(self, 'queue_lr'):
            assert self.queue_size % len(self.lq) == 0, 'queue_size must be a multiple of batch_size_per_gpu'
            self.queue_lr, self.queue_gt = (x.new_zeros(self.queue_size, *x.shape[1:]) for x in (self.lq, self.gt))
            self.queue_ptr = 0
        original(self)

    model._dequeue_and_enqueue = with_pool


ADAPTATIONS: dict[str, Callable[[ModuleType], None]] = {
    REGISTRY: _adapt_registry,
    OPTIONS: _adapt_options,
    **dict.fromkeys(REAL_ESRGAN, _adapt_real_esrgan),
}
FILLS: dict[str, Callable[[ModuleType], None]] = {DEAD_TORCHVISION: _functional_tensor, VERSION: _version}
