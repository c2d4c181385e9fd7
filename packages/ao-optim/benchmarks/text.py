"""Real text as tokens, without a download: a file of the caller's, or the language reference and
the sources of Python's standard library and of torch, which are on every machine that runs this.

A token is one of the 256 bytes or one of the most frequent pieces: a word with the spaces before
it, a sign, or white space. What is no piece is spelled in bytes.
"""

from __future__ import annotations

import gzip
import pydoc_data.topics
import re
import sysconfig
from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["read", "tokens"]

PIECE = re.compile(r" *[A-Za-z]+|_+|\d|[^\w\s]|\n+|[ \t]+|.", re.DOTALL)


def read(path: str | None, megabytes: float) -> str:
    """The first megabytes of the text; `path` may be compressed by gzip."""
    limit = int(megabytes * 1e6)
    if path:
        raw = Path(path).read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return raw[:limit].decode(errors="replace")
    topics = pydoc_data.topics.topics
    parts, size = ["\n".join(topics[key] for key in sorted(topics))], 0
    for folder in (Path(sysconfig.get_path("stdlib")), Path(torch.__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            if "site-packages" in file.relative_to(folder).parts or size > limit:
                continue
            parts.append(file.read_text(errors="replace"))
            size += len(parts[-1])
    return "\n".join(parts)[:limit]


def tokens(text: str, vocabulary: int) -> Tensor:
    """int64 tokens below `vocabulary`, (number of tokens)."""
    pieces = PIECE.findall(text)
    frequent = Counter(pieces).most_common(vocabulary - 256)
    known = {piece: 256 + rank for rank, (piece, _) in enumerate(frequent)}
    spelled: dict[str, tuple[int, ...]] = {}
    for piece in set(pieces):
        spelled[piece] = (known[piece],) if piece in known else tuple(piece.encode())
    return torch.tensor(list(chain.from_iterable(map(spelled.__getitem__, pieces))))
