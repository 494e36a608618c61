"""One file or folder out of many items, made so that a killed run goes on where it was and any number may run at once.

Every item is written, by any process on any machine, as a file of its own into a hidden folder beside the output.
When all are there, they are put together within that folder, and the result takes its name in one step. What is
staged under one way of making it has a folder of its own, so runs with other settings do not meet.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from basicsr_effsr.utils.files import WriteError, fcntl, sweep_parts
from datasets_prep.jobs import Job, Schedule, Summary, run_jobs


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
    is_whole: Callable[[], bool],
    schedule: Schedule,
    *,
    overwrite: bool,
) -> Summary:
    """Stages every item, then puts them together as ``out``; up to twice the size of ``out`` is needed on the disk.

    Args:
        title: the command.
        out: file or folder to be made.
        staging: from ``staging_folder``.
        jobs: one per item, in order, each with its file in ``staging`` as output.
        put_together: makes the output within ``staging`` and returns its path.
        is_whole: whether ``out`` is there, complete and not older than its sources.
        schedule: see there.
        overwrite: make ``out`` again although it is whole.

    Returns:
        What became of each item.

    Raises:
        WriteError: the output cannot be written.
    """
    if not overwrite and is_whole():
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
    with _alone(out.parent):
        if _identity(out) != before and is_whole():  # another run, of another shard perhaps, was quicker
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, as far as the file system has locks; it lies on the folder, so that no file is left."""
    if fcntl is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _identity(out: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = out.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _sweep(out: Path, *, but: Path | None = None) -> None:
    for left in out.parent.glob(f'.{glob.escape(out.name)}.*.staging'):
        if left != but:
            shutil.rmtree(left, ignore_errors=True)
