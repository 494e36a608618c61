"""Running many small jobs: in several processes, skipping what is done, surviving whatever happens to one of them."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from basicsr_effsr.utils.console import progress
from basicsr_effsr.utils.files import sweep_parts, write_bytes
from basicsr_effsr.utils.interrupt import sigterm_interrupts
from datasets_prep.files import same_folder

SETTINGS_FILE = '.prepared.json'
INTERRUPTED = 130
_UNFINISHED = 'unfinished'
_END_OF_TIME = 2**63
_TICK = 0.02  # seconds; the clocks of file systems go in steps of up to 10 ms


@dataclass(frozen=True)
class Job:
    """One item of work.

    Args:
        name: what messages call it, usually the file.
        task: the argument of the work function; it must be picklable.
        sources: files it reads.
        outputs: files it writes, each whole or not at all.
    """

    name: str
    task: Any
    sources: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()

    @property
    def is_done(self) -> bool:
        """Every output exists and none is older than a source; a source dated in the future tells nothing."""
        try:
            oldest = min(path.stat().st_mtime_ns for path in self.outputs)
            changes = [path.stat().st_mtime_ns for path in self.sources]
            return all(change <= oldest or change > time.time_ns() for change in changes)
        except (ValueError, FileNotFoundError):
            return False


@dataclass
class Summary:
    """What became of the jobs."""

    title: str
    done: int = 0
    skipped: int = 0
    planned: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 when everything is as asked, 1 when something failed, 130 when interrupted."""
        if self.interrupted:
            return INTERRUPTED
        return 1 if self.failed else 0

    def lines(self, limit: int = 50) -> list[str]:
        """The summary in words, at most ``limit`` failures first."""
        lines = [f'failed: {name}: {reason}' for name, reason in sorted(self.failed.items())]
        if len(lines) > limit:
            lines[limit:] = [f'failed: ... and {len(lines) - limit} more']
        lines += self.notes
        counts = f'{self.title}: {self.done} done, {self.skipped} already there, {len(self.failed)} failed'
        if self.planned:
            counts = f'{self.title}: would do {self.planned}, {self.skipped} already there (dry run, nothing written)'
        if self.interrupted:
            counts += '; interrupted, run the same command again to go on'
        return [*lines, counts]


@dataclass(frozen=True)
class Plan:
    """How to run the jobs of a command; the options that all commands share.

    Args:
        workers: processes; 0 works in this one.
        shard: (i, n) with 1 <= i <= n: take every n-th job beginning with the i-th.
        dry_run: only say what would be done.
        progress: show a progress bar on the terminal.
    """

    workers: int = 0
    shard: tuple[int, int] = (1, 1)
    dry_run: bool = False
    progress: bool = False

    def mine(self, jobs: Sequence[Any]) -> list[Any]:
        """The part of ``jobs`` that belongs to this shard."""
        index, count = self.shard
        return list(jobs[index - 1 :: count])


def parse_shard(text: str) -> tuple[int, int]:
    """``'2/4'`` -> (2, 4).

    Raises:
        ValueError: unless it is i/n with 1 <= i <= n.
    """
    index, _, count = text.partition('/')
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f'--shard must be i/n with 1 <= i <= n, as in 2/4, got {text!r}')
    return int(index), int(count)


def protect_sources(command: str, jobs: Sequence[Job], folders: Sequence[Path]) -> None:
    """Refuses jobs whose outputs would lie among their sources, or whose output folders are not kept apart.

    Symbolic links and ``..`` are followed. A link in an output folder is no danger: it is replaced, not its target.

    Args:
        command: what the message begins with.
        jobs: with sources and outputs.
        folders: the folders of the outputs.

    Raises:
        ValueError: when an output folder is a folder of sources, an output is what a source links to, or two
            output folders are one.
    """
    inputs = {source.parent for job in jobs for source in job.sources}
    for folder in folders:
        for other in inputs:
            if same_folder(folder, other):
                raise ValueError(f'{command}: {other} holds the originals, which would be written over; choose another')
    for i, folder in enumerate(folders):
        for other in folders[:i]:
            if same_folder(folder, other):
                raise ValueError(f'{command}: the outputs {other} and {folder} are one folder; choose two')
    targets = {source.resolve(): source for job in jobs for source in job.sources if source.is_symlink()}
    if not targets:
        return
    real = {folder: folder.resolve() for folder in folders}
    for job in jobs:
        for path in job.outputs:
            source = targets.get(real[path.parent] / path.name)
            if source is not None:
                raise ValueError(
                    f'{command}: {source} links to {path}, which would be written over; choose another folder'
                )


def claim_folder(
    folder: Path,
    settings: dict[str, Any],
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    names: tuple[str, ...] = (),
) -> int:
    """Notes in ``folder`` how its files are made, so that another way of making them is not mixed in.

    With ``overwrite`` the note says "unfinished" until ``OutputFolders.settle``, so that the files of before, of
    other settings perhaps, are told from those made again: these are younger than the note. An unfinished folder
    goes on being so for whoever claims it next with the same settings.

    Args:
        folder: the folder.
        settings: what the files depend on.
        overwrite: take a folder that was made with other settings.
        dry_run: only look.
        names: settings on which the names of the files depend, which even ``overwrite`` does not change,
            because files of the old names would stay.

    Returns:
        Time (ns) up to which a file counts as not made; 0 when all count as made.

    Raises:
        ValueError: when the folder was made with other settings and ``overwrite`` is not given.
    """
    note = folder / SETTINGS_FILE
    before = json.loads(note.read_text(encoding='utf-8')) if note.is_file() else None
    unfinished = before is not None and before.pop(_UNFINISHED, False)
    if before == settings and (unfinished or not overwrite):
        return note.stat().st_mtime_ns if unfinished else 0
    if before is not None and before != settings:
        changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
        for key in ('command', *names):
            if key in changed:
                raise ValueError(
                    f'{folder}: was made with {key}={before.get(key)!r}, now {settings.get(key)!r}; the files of the '
                    'old names would stay beside the new ones, so choose another folder'
                )
        if not overwrite:
            raise ValueError(
                f'{folder}: was made with '
                + ', '.join(f'{key}={before.get(key)!r}' for key in changed)
                + ', now asked for '
                + ', '.join(f'{key}={settings.get(key)!r}' for key in changed)
                + '; choose another folder or give --overwrite'
            )
    if dry_run:
        return _END_OF_TIME if overwrite else 0
    _write_note(folder, {**settings, _UNFINISHED: True} if overwrite else settings)
    if not overwrite:
        return 0
    time.sleep(_TICK)  # so that the files made now are younger than the note
    return note.stat().st_mtime_ns


def _write_note(folder: Path, settings: dict[str, Any]) -> None:
    write_bytes(folder / SETTINGS_FILE, json.dumps(settings, sort_keys=True, indent=1).encode())


class OutputFolders:
    """The folders that a command writes to, claimed with their settings (``claim_folder``) and swept.

    Args:
        settings: of each folder, in values that JSON knows.
        overwrite: make again what is there, whatever it was made with.
        dry_run: only look.
        names: settings on which the names of the files depend.

    Raises:
        ValueError: when a folder was made with other settings and ``overwrite`` is not given.
    """

    def __init__(
        self,
        settings: dict[Path, dict[str, Any]],
        *,
        overwrite: bool = False,
        dry_run: bool = False,
        names: tuple[str, ...] = (),
    ) -> None:
        self._settings = settings
        self._since: dict[Path, int] = {}
        for folder, its in settings.items():
            self._since[folder] = claim_folder(folder, its, overwrite=overwrite, dry_run=dry_run, names=names)
            if not dry_run:
                sweep_parts(folder)

    def is_done(self, job: Job) -> bool:
        """Every output is there, up to date, and made with the settings of now."""
        return job.is_done and all(
            not self._since[path.parent] or path.stat().st_mtime_ns > self._since[path.parent] for path in job.outputs
        )

    def settle(self, jobs: Sequence[Job], summary: Summary) -> None:
        """Takes the word "unfinished" from the notes when the jobs of all shards are done."""
        if any(self._since.values()) and all(job.name in summary.results or self.is_done(job) for job in jobs):
            for folder, its in self._settings.items():
                _write_note(folder, its)


def run_jobs(
    title: str,
    jobs: Sequence[Job],
    work: Callable[[Any], Any],
    plan: Plan,
    *,
    overwrite: bool = False,
    is_done: Callable[[Job], bool] | None = None,
    on_result: Callable[[Job, Any], None] | None = None,
) -> Summary:
    """Runs ``work(job.task)`` for every job of this shard that is not done yet.

    An error in one job is kept under its name and the others go on; only a full disk ends the run early.
    When a worker process dies, its jobs are tried again one by one, so that the one to blame is named.
    On an interrupt (also SIGTERM) the jobs in flight are finished or dropped whole.

    Args:
        title: word for the progress bar and the summary.
        jobs: all jobs of all shards, in a fixed order.
        work: top-level function, called in a worker process when ``plan.workers`` > 0.
        plan: workers, shard, dry run, progress.
        overwrite: run jobs that are done already, too.
        is_done: tells whether a job need not be run; by default from its files.
        on_result: called in this process with every job that succeeded and what ``work`` returned.

    Returns:
        The summary; what ``work`` returned is in ``summary.results`` by the name of the job.
    """
    summary = Summary(title)
    mine = plan.mine(jobs)
    is_done = is_done or (lambda job: job.is_done)
    todo = [job for job in mine if overwrite or not is_done(job)]
    summary.skipped = len(mine) - len(todo)
    if plan.dry_run:
        summary.planned = len(todo)
        summary.notes += [f'would do: {job.name}' for job in todo[:20]]
        summary.notes += ['would do: ...'] if len(todo) > 20 else []
        return summary
    with _bar(title, len(todo), plan.progress) as advance, sigterm_interrupts():
        try:
            finished = _in_processes(todo, work, plan.workers) if plan.workers else _in_this_process(todo, work)
            for job, result, error in finished:
                advance()
                if error is None:
                    summary.done += 1
                    summary.results[job.name] = result
                    if on_result is not None:
                        on_result(job, result)
                else:
                    summary.failed[job.name] = _reason(error, job.name)
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    summary.notes.append('the disk is full; make room and run the same command again to go on')
                    break
        except KeyboardInterrupt:
            summary.interrupted = True
    return summary


def _reason(error: BaseException, name: str) -> str:
    text = str(error).removeprefix(name).lstrip(': ')
    return text if isinstance(error, (ValueError, OSError)) and text else f'{type(error).__name__}: {text}'


def _in_this_process(jobs: Sequence[Job], work: Callable[[Any], Any]) -> Iterator[tuple[Job, Any, Exception | None]]:
    for job in jobs:
        try:
            yield job, work(job.task), None
        except Exception as error:
            yield job, None, error


def _in_processes(
    jobs: Sequence[Job], work: Callable[[Any], Any], workers: int
) -> Iterator[tuple[Job, Any, Exception | None]]:
    waiting = list(reversed(jobs))
    while waiting:
        suspects: list[Job] = []
        pool = _pool(workers)
        running: dict[Future, Job] = {}
        try:
            while (waiting or running) and not suspects:
                while waiting and len(running) < 2 * workers:
                    job = waiting.pop()
                    running[pool.submit(work, job.task)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        suspects.append(job)
                    else:
                        yield job, None if error else future.result(), error  # type: ignore[misc]
            suspects += running.values()
        except BrokenProcessPool:  # from submit: the pool died between two looks at it
            waiting.append(job)
            suspects += running.values()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        yield from _one_by_one(suspects, work)


def _one_by_one(jobs: Sequence[Job], work: Callable[[Any], Any]) -> Iterator[tuple[Job, Any, Exception | None]]:
    for job in jobs:
        with _pool(1) as pool:
            future = pool.submit(work, job.task)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                error = RuntimeError('the worker process died; was it out of memory? try fewer --workers')
            yield job, None if error else future.result(), error  # type: ignore[misc]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Worker processes started in this block use one thread each in BLAS, as they are many already."""
    names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, '1'))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Pool(ProcessPoolExecutor):
    """Starts its processes with one thread each, whenever it starts them."""

    def submit(self, fn, /, *args, **kwargs):
        with _one_thread_each():
            return super().submit(fn, *args, **kwargs)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: the same on every system, and no lock is inherited in a locked state
    return _Pool(workers, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _bar(title: str, total: int, shown: bool) -> Iterator[Callable[[], None]]:
    with progress(MofNCompleteColumn(), TimeElapsedColumn(), shown=bool(shown and total)) as bars:
        task = bars.add_task(title, total=total)
        yield lambda: bars.advance(task)
