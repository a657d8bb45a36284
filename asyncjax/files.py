"""Files that whoever reads them finds whole: the old one or the new one."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PathLike = str | os.PathLike[str]


def replace(path: PathLike, content: str | bytes) -> None:
    """Writes a file beside the old one, whose place it takes when it is whole."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def replace_arrays(path: PathLike, arrays: Mapping[str, Any], compressed: bool = False) -> None:
    """`replace` with an .npz file of these arrays."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    replace(path, buffer.getvalue())
