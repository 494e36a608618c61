"""Runs many small jobs in several processes; finished ones are skipped, a failed one does not stop the others."""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from basicsr_effsr.utils.console import progress
from basicsr_effsr.utils.errors import one_line
from basicsr_effsr.utils.files import WriteError, alone_in, read_text, sweep_parts, write_bytes
from datasets_prep.files import same_folder

SETTINGS_FILE = '.prepared.json'
INTERRUPTED = 130
Overwrite = Annotated[bool, typer.Option('--overwrite', help='Replace existing outputs.')]


@dataclass(frozen=True)
class Job:
    """One item of work."""

    name: str  # what messages call it, usually the file
    work: Callable[[], Any]  # picklable for a worker process
    sources: tuple[Path, ...] = ()  # files it reads
    outputs: tuple[Path, ...] = ()  # files it writes, each whole or not at all

    @property
    def is_done(self) -> bool:
        """Every output exists and none is older than a source; a source dated in the future says nothing."""
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
        return INTERRUPTED if self.interrupted else int(bool(self.failed))

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
            counts += '; interrupted, run the same command again to continue'
        return [*lines, counts]


@dataclass(frozen=True)
class Schedule:
    """How to run the jobs of a command; the options that all commands share."""

    workers: int = 0  # processes; 0 works in this one
    shard: tuple[int, int] = (1, 1)  # (i, n) with 1 <= i <= n: take every n-th job beginning with the i-th
    dry_run: bool = False  # only say what would be done
    progress: bool = False  # show a progress bar on the terminal

    def mine(self, jobs: Sequence[Any]) -> list[Any]:
        """The part of ``jobs`` that belongs to this shard."""
        index, count = self.shard
        return list(jobs[index - 1 :: count])


ALONE = Schedule()


def parse_shard(text: str) -> tuple[int, int]:
    """``'2/4'`` -> (2, 4).

    Raises:
        ValueError: unless it is i/n with 1 <= i <= n.
    """
    index, _, count = text.partition('/')
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f'--shard must be i/n with 1 <= i <= n, as in 2/4, got {text!r}')
    return int(index), int(count)


def make_files(
    command: str,
    jobs: Sequence[Job],
    settings: Mapping[Path, Mapping[str, Any]],
    schedule: Schedule,
    *,
    names: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Summary:
    """Runs jobs that write into folders, each with a note of how its files are made, so that two ways do not mix.

    Args:
        settings: of each folder of outputs, in values that JSON knows.
        names: settings on which the names of the files depend; ``overwrite`` does not change them, because files of
            the old names would stay.
        overwrite: remove the outputs that are there first, whatever they were made with.

    Returns:
        The summary. A file that was made and is not there at the end counts as failed.

    Raises:
        ValueError: an output would lie among the sources, two folders of outputs are one, a folder was made with
            other settings, or one shard is to remove the files of all.
        WriteError: a folder or its note cannot be written.
    """
    _protect_sources(command, jobs, list(settings))
    if overwrite and schedule.shard != (1, 1):
        raise ValueError(f'{command}: --overwrite removes the files of all shards; give it to a run without --shard')
    for folder, its in settings.items():
        _refuse_other_settings(folder, {'command': command, **its}, ('command', *names), overwrite)
    if not schedule.dry_run:
        for path in [path for job in jobs for path in job.outputs] if overwrite else ():
            path.unlink(missing_ok=True)
        for folder, its in settings.items():
            if overwrite or not (folder / SETTINGS_FILE).is_file():
                note = json.dumps({'command': command, **its}, sort_keys=True, indent=1)
                write_bytes(folder / SETTINGS_FILE, note.encode())
            sweep_parts(folder)
    elif overwrite:
        jobs = [Job(job.name, job.work) for job in jobs]
    summary = run_jobs(command, jobs, schedule)
    for job in jobs:
        if job.name in summary.results and not job.is_done:
            summary.failed[job.name] = 'what was made of it is gone, or it changed meanwhile; run the command again'
    return summary


def _protect_sources(command: str, jobs: Sequence[Job], folders: Sequence[Path]) -> None:
    """Symbolic links and ``..`` are followed. A link in an output folder is no danger: it is replaced itself."""
    originals = {source for job in jobs for source in job.sources}
    inputs = {source.parent for source in originals}
    inputs |= {Path(os.path.realpath(source)).parent for source in originals if source.is_symlink()}
    for i, folder in enumerate(folders):
        for other in inputs:
            if same_folder(folder, other):
                raise ValueError(f'{command}: {other} holds the originals, which would be written over; choose another')
        for other in folders[:i]:
            if same_folder(folder, other):
                raise ValueError(f'{command}: the outputs {other} and {folder} are one folder; choose two')
    owners: dict[Path, str] = {}
    for path, name in [(path, job.name) for job in jobs for path in job.outputs]:
        if owners.setdefault(path, name) != name:
            raise ValueError(f'{owners[path]} and {name} would both be written to {path}; rename one of them')


def _refuse_other_settings(folder: Path, settings: dict[str, Any], names: tuple[str, ...], overwrite: bool) -> None:
    note, before = folder / SETTINGS_FILE, settings
    try:
        before = dict(json.loads(read_text(note)))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f'{note}: is damaged ({one_line(error)}); remove it and the files beside it') from None
    changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if not changed or (overwrite and not {*changed} & {*names}):
        return
    was, now = (', '.join(f'{key}={its.get(key)!r}' for key in changed) for its in (before, settings))
    ways = 'choose another folder' if {*changed} & {*names} else 'choose another folder or give --overwrite'
    raise ValueError(f'{folder}: was made with {was}, now asked for {now}; {ways}')


def run_jobs(title: str, jobs: Sequence[Job], schedule: Schedule) -> Summary:
    """Runs every job of this shard that is not done yet.

    An error in one job is kept under its name and the others go on; what cannot be written ends the run. When a
    worker process dies, the jobs that it may have been at fail and the others go on. On an interrupt
    the jobs in flight are finished or dropped whole. The jobs of all shards are given, in a fixed order.

    Returns:
        The summary; what their work returned is in ``summary.results`` by the name of the job.
    """
    mine = schedule.mine(jobs)
    todo = [job for job in mine if not job.is_done]
    summary = Summary(title, skipped=len(mine) - len(todo))
    if schedule.dry_run:
        summary.planned = len(todo)
        summary.notes += [f'would do: {job.name}' for job in todo[:20]]
        summary.notes += ['would do: ...'] if len(todo) > 20 else []
        return summary
    shown = schedule.progress and bool(todo)
    with progress(MofNCompleteColumn(), TimeElapsedColumn(), shown=shown) as bars:
        bar = bars.add_task(title, total=len(todo))
        try:
            for job, outcome in _outcomes(todo, schedule.workers):
                bars.advance(bar)
                try:
                    summary.results[job.name] = outcome()
                    summary.done += 1
                except Exception as error:
                    summary.failed[job.name] = _reason(error, job.name)
                    if isinstance(error, WriteError):
                        summary.notes.append(f'{title}: stopped; run the same command again to continue')
                        break
        except KeyboardInterrupt:
            summary.interrupted = True
    return summary


def _reason(error: BaseException, name: str) -> str:
    text = str(error).removeprefix(name).lstrip(': ')
    return text if isinstance(error, (ValueError, OSError)) and text else f'{type(error).__name__}: {text}'


def _outcomes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Callable[[], Any]]]:
    if not workers:
        yield from ((job, job.work) for job in jobs)
        return
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(name, '1')  # for the workers, which are many already; our own libraries are loaded
    waiting = list(reversed(jobs))
    while waiting:
        running: dict[Future, Job] = {}
        # spawn: the same on every system, and no lock is inherited in a locked state
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _start_worker)
        try:
            while waiting or running:
                while waiting and len(running) < 2 * workers:
                    future = pool.submit(waiting[-1].work)
                    running[future] = waiting.pop()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    if isinstance(future.exception(), BrokenProcessPool):
                        raise BrokenProcessPool
                    yield running.pop(future), future.result
        except BrokenProcessPool:
            for job in running.values():
                yield job, _died
        finally:
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:  # a second one; of the first the pool may know too little to end its workers
                for worker in multiprocessing.active_children():
                    worker.kill()
                raise


def _died() -> None:
    raise RuntimeError('a worker process died, perhaps out of memory; run again with fewer --workers')


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


def staging_folder(out: Path, *facts: Any) -> Path:
    """The hidden folder beside ``out`` for what is made of these facts (as JSON knows them)."""
    key = hashlib.sha256(json.dumps(facts, default=str).encode('utf-8', 'surrogateescape')).hexdigest()[:16]
    return out.with_name(f'.{out.name}.{key}.staging')


def build(
    title: str,
    out: Path,
    staging: Path,
    jobs: Sequence[Job],
    put_together: Callable[[], Path],
    is_whole: Callable[[int], bool],
    schedule: Schedule,
    *,
    overwrite: bool,
) -> Summary:
    """One file or folder out of many items, so that a killed run goes on where it was and any number may run at once.

    Every item is written, by any process on any machine, as a file of its own into a hidden folder beside ``out``. When
    all are there, they are put together within that folder, and the result takes its name in one step. What is staged
    under one way of making it has a folder of its own, so runs with other settings do not meet. Up to twice the size of
    ``out`` is needed on the disk.

    Args:
        jobs: one per item, in order, each with its file in ``staging`` as output.
        put_together: makes the output within ``staging`` and returns its path.
        is_whole: whether ``out`` is there, complete and not older than this time (ns), that of its newest source.

    Raises:
        WriteError: the output cannot be written.
    """
    now, sources = time.time_ns(), {source for job in jobs for source in job.sources}
    stamps = [source.stat().st_mtime_ns for source in sources]
    changed = max((stamp for stamp in stamps if stamp <= now), default=0)  # what lies in the future says nothing
    if not overwrite and is_whole(changed):
        if not schedule.dry_run:
            _sweep(out)  # a run killed in its last moment leaves it
        return Summary(title, skipped=len(schedule.mine(jobs)))
    before = _identity(out)
    if not schedule.dry_run:
        _sweep(out, but=staging)
        sweep_parts(staging)
    summary = run_jobs(title, jobs, schedule)
    if schedule.dry_run or summary.interrupted:
        return summary
    with alone_in(out.parent):
        if _identity(out) != before and is_whole(changed):  # another run, of another shard perhaps, was quicker
            summary.failed.clear()
            _sweep(out)
        elif not summary.failed and all(job.is_done for job in jobs):
            ready = put_together()
            try:
                if out.is_dir():
                    os.replace(out, staging / secrets.token_hex(4))
                os.replace(ready, out)
            except OSError as error:
                raise WriteError.of(out, error) from error
            _sweep(out)
        elif not summary.failed:
            missing = [job.name for job in schedule.mine(jobs) if not job.is_done]
            summary.failed = dict.fromkeys(missing, 'what was made of it is gone, or it changed; run the command again')
            summary.notes.append(
                f'{title}: {out} follows when the other shards are done: run once more without --shard'
            )
    return summary


def _identity(out: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = out.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _sweep(out: Path, *, but: Path | None = None) -> None:
    for left in out.parent.glob(f'.{glob.escape(out.name)}.*.staging'):
        if left != but:
            shutil.rmtree(left, ignore_errors=True)
