"""mkdocs: the pages that lie in the root, where GitHub looks for them, are pages of the site, and links follow."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {'README.md': 'index.md'} | {
    name: name.lower()
    for name in (
        'CHANGELOG.md',
        'CODE_OF_CONDUCT.md',
        'CONTRIBUTING.md',
        'SECURITY.md',
        'TESTING.md',
        'THIRD_PARTY.md',
        'benchmarks/README.md',
        'benchmarks/results/cpu.md',
    )
}


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they hold in the repository, made to hold on the site."""
    here = page.file.src_uri
    source = {site: name for name, site in PAGES.items()}.get(here, f'docs/{here}')

    def on_site(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        site = PAGES.get(target, target.removeprefix('docs/'))
        return f']({posixpath.relpath(site, posixpath.dirname(here) or ".")}'

    return re.sub(r'\]\(((?!\w+:)[^)#\s]+)', on_site, markdown)
