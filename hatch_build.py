"""What a distribution says of its home: the URL of the repository that it is built from.

Where that is known, the README's links lead there: a package index has none of the files beside it. Where
it is not, as in a copy without `origin`, the links become plain words. A source distribution was told.
"""

import re
import subprocess
from email import message_from_bytes
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")


_PLACES = {
    "Repository": "",
    "Documentation": "/blob/HEAD/docs",
    "Changelog": "/blob/HEAD/CHANGELOG.md",
    "Issues": "/issues",
}


class HomeHook(MetadataHookInterface):
    """Sets readme and urls."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        if (built := root / "PKG-INFO").exists():
            told = message_from_bytes(built.read_bytes())
            text = str(told.get_payload())
            urls = dict(each.split(", ", 1) for each in told.get_all("Project-URL", ()))
        else:
            home = _home(root)
            text = described((root / "README.md").read_text(encoding="utf-8"), home)
            urls = {name: home + path for name, path in _PLACES.items() if home}
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls


def described(readme: str, home: str) -> str:
    """The README with links that lead somewhere, wherever it is read."""

    def absolute(link: re.Match[str]) -> str:
        return f"[{link[1]}]({home}/blob/HEAD/{link[2]})" if home else link[1]

    return _RELATIVE.sub(absolute, readme)


def address(remote: str) -> str:
    """The URL at which a browser finds a remote repository, without a password; "" if it is a folder."""
    if remote.startswith("."):
        return ""
    parts = urlsplit(remote if "://" in remote else f"ssh://{remote.replace(':', '/', 1)}")
    if parts.scheme not in ("https", "http", "ssh", "git") or not parts.hostname:
        return ""
    port = f":{parts.port}" if parts.port and parts.scheme in ("https", "http") else ""
    return f"https://{parts.hostname}{port}{parts.path.removesuffix('/').removesuffix('.git')}"


def _home(root: Path) -> str:
    if not (root / ".git").exists():  # else it may lie in another project's
        return ""
    try:
        remote = subprocess.run(
            ["git", "-C", str(root), "remote", "get-url", "origin"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return address(remote.stdout.strip())
