"""Packages that come with the extras: imported on use."""

from __future__ import annotations

import importlib
from typing import Any


def import_extra(module: str, why: str, extra: str) -> Any:
    """The module; where it can not be imported, an ImportError that says what needs it and which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{why}: pip install "asyncjax[{extra}]" ({error}).') from error
