"""BasicSR's ``meta_info_file``: one line ``name.png (h,w,c)`` per image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basicsr_effsr.utils.files import write_bytes
from datasets_prep.files import image_shape, is_one_line, list_images, refuse_image_name
from datasets_prep.jobs import ALONE, Job, Schedule, Summary, run_jobs


def make_meta_info(
    folder: Annotated[Path, typer.Argument(help='Folder of HR (sub-)images.')],
    out: Annotated[Path, typer.Argument(help='The text file.')],
    *,
    schedule: Schedule = ALONE,
) -> Summary:
    """Writes BasicSR's meta_info_file: the name and shape of every image, from its header.

    Nothing is written when an image cannot be read.

    Returns:
        What became of each image.

    Raises:
        ValueError: when the folder holds no image or one whose name BasicSR would not read back, ``out`` has the
            name of an image, or for a shard.
        FileNotFoundError: when the folder does not exist.
    """
    if schedule.shard != (1, 1):
        raise ValueError('meta-info: writes one small file from headers only; run it without --shard')
    refuse_image_name('meta-info', out)
    files = list_images(folder)
    for file in files:
        if not is_one_line(file.name) or file.name.split(' ')[0] != file.name:
            raise ValueError(
                f'meta-info: {file}: its name must be one word in UTF-8, as BasicSR reads up to the first space; '
                'rename it, or train without meta_info_file'
            )
    summary = run_jobs('meta-info', [Job(str(file), partial(image_shape, file)) for file in files], schedule)
    if schedule.dry_run or summary.exit_code:
        return summary
    lines = []
    for file in files:
        height, width, channels = summary.results[str(file)]
        lines.append(f'{file.name} ({height},{width},{channels})\n')
    text = ''.join(lines).encode()
    if not out.is_file() or out.read_bytes() != text:
        write_bytes(out, text)
    return summary
