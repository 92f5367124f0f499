"""Where pocketzoo keeps what belongs to its user: calibrations, records."""

from __future__ import annotations

import os
from pathlib import Path


def user_folder() -> Path:
    """$POCKETZOO_HOME, else pocketzoo/ in $XDG_DATA_HOME, else in ~/.local/share; it need not exist."""
    if home := os.environ.get("POCKETZOO_HOME"):
        return Path(home)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "pocketzoo"
