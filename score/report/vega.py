"""vl-convert, Vega as one piece of JavaScript from it, and whether it and Altair are there."""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ...data.errors import HeadscoreError, InputError, RunError, typed_line
from ...data.files.plain import read_plain
from ...data.files.whole_file import remove_leftovers, user_cache, write_text
from ...data.limits import require_address_space
from ..forks import require_own_threads

_PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python"}
_MIN_LENGTH = 500_000  # a file that was cut off is none
_MAX_BYTES = 16 << 20


def missing_packages() -> list[str]:
    """What a report needs and is not installed."""
    return [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]


def require_packages(what: str) -> None:
    """Raises InputError, saying what to install, where a report cannot be made, and RunError where memory is limited for it."""
    if missing := missing_packages():
        raise InputError(f"{what}: needs {' and '.join(missing)}: pip install 'headscore[report]'")
    require_address_space("report")


@contextlib.contextmanager
def converter(what: str) -> Iterator[ModuleType]:
    """The module vl_convert, with which `what` is made. Raises RunError where it fails, or would never answer.

    Its work is done by a thread, which a forked process has not got if its parent had started it.
    """
    import vl_convert  # here, as this module also tells whether it is installed

    require_own_threads(what, "vl-convert")
    try:
        yield vl_convert
    except (ValueError, RuntimeError) as error:
        raise RunError(f"{what}: vl-convert failed: {typed_line(error)}") from error


def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as JavaScript, which makes `vegaEmbed` known to a page.

    vl-convert takes a second or more to put them together, so the code is kept in the user's cache folder, once for each
    version of vl-convert. Raises RunError where vl-convert fails.
    """
    kept = _kept_at()
    if kept and (code := _read(kept)):
        return code
    with converter("the report's JavaScript") as convert:
        code = str(convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    if kept:
        remove_leftovers(kept.parent)
        with contextlib.suppress(RunError):  # a home that cannot be written
            write_text(kept, code)
    return code


def _kept_at() -> Path | None:
    try:
        return user_cache() / f"vega-{importlib.metadata.version('vl-convert-python')}.js"
    except InputError:  # a user without a home
        return None


def _read(path: Path) -> str | None:
    try:
        code = (read_plain(path, _MAX_BYTES) or b"").decode()
    except (HeadscoreError, ValueError):
        return None
    return code if len(code) >= _MIN_LENGTH else None
