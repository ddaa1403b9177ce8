"""A page's seal: a last line with the SHA-256 of all before it, by which damage is told."""

import hashlib
import re

SEAL = re.compile(rb"\n<!-- sha256 ([0-9a-f]{64}) -->\n")
LENGTH = 82  # bytes of a seal
END = b"</html>"


def seal(page: bytes) -> bytes:
    """A page of HTML with its seal, a comment at its end."""
    return page + f"\n<!-- sha256 {hashlib.sha256(page).hexdigest()} -->\n".encode()


def is_whole(page: bytes) -> bool:
    """Whether a page is what was written: by its seal, else, as pages had none once, by its end."""
    content, end = page[:-LENGTH], page[-LENGTH:]
    if match := SEAL.fullmatch(end):
        return hashlib.sha256(content).hexdigest().encode() == match[1]
    return page.rstrip().endswith(END)
