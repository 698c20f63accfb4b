"""A hook of MkDocs: the site has the repository's pages at the repository's paths.

So a link between README.md, MODEL_ZOO.md and docs/ leads to its target on GitHub and on the site.
In the reference of the API the roles of docstrings, as in :func:`open`, become plain names.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("README.md", "MODEL_ZOO.md", "CHANGELOG.md", "CONTRIBUTING.md")
ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):<code>(~?)([^<]+)</code>")
LINK = re.compile(r"\]\(([^)\s#:]+)[^)\s:]*\)")  # to a file of the repository


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Move the files of docs/ there, and add the other pages and the files that pages link."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    paths = {root / page for page in PAGES}
    for file in list(files):
        if file.abs_src_path and docs in Path(file.abs_src_path).parents:
            files.remove(file)
            paths.add(Path(file.abs_src_path))
    for page in sorted(path for path in paths if path.suffix == ".md"):
        targets = {(page.parent / link).resolve() for link in LINK.findall(page.read_text())}
        paths |= {target for target in targets if target.is_file() and root in target.parents}
    for path in sorted(paths):
        uri = path.relative_to(root).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_content(html: str, **kwargs: Any) -> str:
    """Show names in place of roles; of those with a tilde the last part."""
    return ROLE.sub(lambda found: f"<code>{_name(*found.groups())}</code>", html)


def _name(tilde: str, name: str) -> str:
    return name.rpartition(".")[2] if tilde else name
