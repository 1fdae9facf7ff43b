"""The front page as a package index shows it: what leads into the repository there leads to it."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class FrontPage(MetadataHookInterface):
    """Makes the description of the distribution from ``README.md``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put the front page into ``metadata``, with links that hold elsewhere, too."""
        tag = f"{metadata['urls']['Source']}/%s/v{metadata['version']}/"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = re.sub(r"(!\[[^\]]*\])\((?!https?:)", rf"\1({tag % 'raw'}", text)
        text = re.sub(r"(?<!!)(\[[^\]]*\])\((?!https?:)", rf"\1({tag % 'blob'}", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
