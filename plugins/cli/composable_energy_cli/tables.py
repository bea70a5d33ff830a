"""Output of commands: aligned tables and JSON."""

import json
import math
from typing import Any

from composable_energy.options import printable
from composable_energy.options import text_table as table

__all__ = ["json_text", "table"]


def json_text(value: Any) -> str:
    """Returns JSON with null for numbers that are not finite, and escapes for control characters."""
    text = json.dumps(_replace_nonfinite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(char if printable(char) == char else json.dumps(char)[1:-1] for char in text)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
