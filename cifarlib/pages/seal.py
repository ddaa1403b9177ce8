"""A page's seal: last lines with the SHA-256 of what was made with it, and of all before them.

By it damage is told: of the page itself, and of the PDF and the notebooks that stand beside it.
"""

import hashlib
import re
from collections.abc import Mapping

SEAL = re.compile(rb"\n<!-- sha256 ([0-9a-f]{64}) -->\n")
BESIDE = re.compile(rb"\n<!-- beside: sha256 ([0-9a-f]{64}) (\S+) -->(?=\n)")
LENGTH = 82  # bytes of a seal
END = b"</html>"


def seal(page: bytes, beside: Mapping[str, bytes] | None = None) -> bytes:
    """A page of HTML with its seal, comments at its end.

    ``beside`` are the files made with it: path from the page's folder → content.
    """
    for name, content in (beside or {}).items():
        page += f"\n<!-- beside: sha256 {_digest(content)} {name} -->".encode()
    return page + f"\n<!-- sha256 {_digest(page)} -->\n".encode()


def is_whole(page: bytes) -> bool:
    """Whether a page is what was written: by its seal, else, as pages had none once, by its end."""
    content, end = page[:-LENGTH], page[-LENGTH:]
    if match := SEAL.fullmatch(end):
        return _digest(content).encode() == match[1]
    return page.rstrip().endswith(END)


def is_beside(page: bytes, name: str, content: bytes) -> bool:
    """Whether a file is the one that a whole page was made with; of a page without a word of it,
    any is."""
    named = {match[2].decode(): match[1].decode() for match in BESIDE.finditer(page)}
    return named.get(name, _digest(content)) == _digest(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
