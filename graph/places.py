"""Where in the user's code something happened: what an error or a refusal names."""

from __future__ import annotations

import sysconfig
import traceback

STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + "/"


def place_of(error: BaseException | None) -> str:
    """file:line of the innermost frame that is neither torch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__) if error else traceback.extract_stack()
    here = __file__.rsplit("/", 1)[0]
    for frame in reversed(frames):
        name = frame.filename
        standard = name.startswith(STANDARD_LIBRARY) and "/site-packages/" not in name
        if "/torch/" not in name and not standard and not name.startswith(here):
            return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    return "unknown place"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
