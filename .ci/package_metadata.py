"""The package's URLs, and its description with links that work away from the repository.

The address of the repository is that of git's `origin`, or, in a source distribution, the one that
was found when that was made. Where there is none, a link becomes plain text.
"""

from __future__ import annotations

import email
import re
import subprocess
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://doi.org/10.1109/ACCESS.2020.2991231"
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def repository_url(root: Path) -> str | None:
    """The repository's page, without user and password; None if it is not on a web server."""
    if (root / "PKG-INFO").is_file():
        made = email.message_from_string((root / "PKG-INFO").read_text(encoding="utf-8"))
        urls = dict(url.split(", ", 1) for url in made.get_all("Project-URL", []))
        return urls.get("Repository")
    if not (root / ".git").exists():
        return None
    try:
        git = ("git", "-C", str(root), "config", "--get", "remote.origin.url")
        origin = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return web_page(origin)


def web_page(remote: str) -> str | None:
    """The page of a git remote.

    Example:
        >>> web_page("https://me:secret@example.org/team/tool.git")
        'https://example.org/team/tool'
        >>> web_page("git@example.org:team/tool.git")
        'https://example.org/team/tool'
        >>> web_page("/srv/git/tool.git")
    """
    form = r"(?:(?:https?|ssh)://(?:[^@/]*@)?([^:/]+)(?::\d+)?/|[^@/:]+@([^:/]+):)(.+?)(?:\.git)?/?"
    found = re.fullmatch(form, remote)
    return f"https://{found[1] or found[2]}/{found[3]}" if found else None


def absolute_links(text: str, repository: str | None) -> str:
    """Markdown whose links into the repository are absolute.

    Example:
        >>> absolute_links("[a](b.md) ![c](d.svg) [e](#f)", "https://example.org/g")
        '[a](https://example.org/g/blob/HEAD/b.md) ![c](https://example.org/g/raw/HEAD/d.svg) [e](#f)'
        >>> absolute_links("[a](b.md) ![c](d.svg) [e](#f)", None)
        'a c [e](#f)'
    """  # noqa: E501

    def link(found: re.Match[str]) -> str:
        image, words, path = found.groups()
        if repository is None:
            return words
        return f"{image}[{words}]({repository}/{'raw' if image else 'blob'}/HEAD/{path})"

    return RELATIVE.sub(link, text)


class PackageMetadata(MetadataHookInterface):
    """Called by hatchling whenever the package is built or installed."""

    def update(self, metadata: dict[str, object]) -> None:
        """Fill in `urls` and `readme`, which pyproject.toml declares dynamic."""
        root = Path(self.root)
        page = repository_url(root)
        urls = {"Paper": PAPER}
        if page is not None:
            changes = f"{page}/blob/HEAD/CHANGELOG.md"
            urls |= {"Repository": page, "Issues": f"{page}/issues", "Changelog": changes}
        readme = (root / "README.md").read_text(encoding="utf-8")
        text = absolute_links(readme, page)
        metadata["urls"] = urls
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
