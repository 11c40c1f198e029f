"""Makes docs/report.png, the README's picture: a report.html as a headless Chromium shows it, down to the end of its map.

`python tests/picture.py [REPORT]`, where REPORT is headscore-results/report.html of `make demo` if not given. Needs Chromium.
"""

import base64
import sys
import tempfile
from pathlib import Path

from browser import browser, chromium

PICTURE = Path(__file__).parent.parent / "docs" / "report.png"
WIDTH, HEIGHT = 1080, 1300  # CSS pixels
SECOND_HEADING = "document.querySelectorAll('h2')[1].getBoundingClientRect().top"  # what comes after the map
MARGIN = 45
MAX_BYTES = 200_000


def picture(report: Path, path: Path = PICTURE) -> int:
    """Write the picture of a report's top, and return its size in bytes."""
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
        page.call("Emulation.setScrollbarsHidden", hidden=True)
        page.size(WIDTH, HEIGHT)
        page.open(report)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": int(page.run(SECOND_HEADING)) - MARGIN, "scale": 1}
        path.write_bytes(base64.b64decode(page.call("Page.captureScreenshot", clip=clip)["data"]))
    return path.stat().st_size


if __name__ == "__main__":
    if chromium() is None:
        sys.exit("no Chromium is found: install chromium or google-chrome")
    report = Path(sys.argv[1] if len(sys.argv) > 1 else "headscore-results/report.html")
    if not report.is_file():
        sys.exit(f"{report}: there is no such file; `make demo` makes it")
    size = picture(report)
    print(f"{PICTURE}: {size:,} bytes")
    if size > MAX_BYTES:
        sys.exit(f"larger than {MAX_BYTES:,} bytes")
