"""Look at the built site in a browser: python scripts/docs_browser.py [BROWSER]; needs Chromium or Chrome.

Pages are opened as files, without a server. For each: no error in the console, no address but files; the search finds
a class by its name in both languages; screenshots as wide as a phone and a desktop go to build/site-shots.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
SHOTS = ROOT / "build" / "site-shots"
NAMES = ("chromium", "chromium-browser", "google-chrome")
PAGES = (
    "index.html",
    "zh/index.html",
    "api/longformer-torch.html",
    "zh/api/bert-keras.html",
    "zh/gallery/4-explain.html",
)
SEARCHED = ("LongformerForSequenceClassification", "FlaxLongT5Model", "TFBertForQuestionAnswering", "MegaForMaskedLM")
WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}


class Browser:
    """A browser without a window, with a profile of its own."""

    def __init__(self, command: str, profile: str) -> None:
        self.command = [command, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                        "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=20000",
                        f"--user-data-dir={profile}"]  # fmt: skip

    def run(self, address: str, *flags: str) -> tuple[str, list[str]]:
        """The document after its scripts have run, and what the console says of errors."""
        done = subprocess.run([*self.command, *flags, address], capture_output=True, text=True, check=True, timeout=120)
        lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout, [line for line in lines if re.search(r"error|refused|fail", line, flags=re.IGNORECASE)]


def installed() -> str | None:
    """A browser of this machine."""
    return next((name for name in NAMES if shutil.which(name)), None)


def look(command: str) -> list[str]:
    """What is wrong with the site in a browser."""
    problems = []
    SHOTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(command, profile)
        for page in PAGES:
            _, errors = browser.run((SITE / page).as_uri(), "--dump-dom")
            problems += [f"{page}: {error}" for error in errors]
            for name, (width, height) in WIDTHS.items():
                picture = SHOTS / f"{page.replace('/', '-').removesuffix('.html')}-{name}.png"
                browser.run((SITE / page).as_uri(), f"--screenshot={picture}", f"--window-size={width},{height}")
        for home, folder in (("index.html", "api/"), ("zh/index.html", "zh/api/")):
            for name in SEARCHED:
                document, _ = browser.run(f"{(SITE / home).as_uri()}?q={name}", "--dump-dom")
                results = re.findall(r'<a href="([^"]+)" class="md-search-result__link"', document)
                if not any(f"{folder}" in found and found.lower().rpartition("#")[2].startswith(name.lower())
                           for found in results):  # fmt: skip
                    problems.append(f"{home}: the search for {name} does not lead to its place: {results[:5]}")
    return problems


def main() -> int:
    """Print what is wrong; the exit code is 1 if anything is."""
    command = sys.argv[1] if len(sys.argv) > 1 else installed()
    if command is None or not SITE.is_dir():
        print("needs `make docs` first, and Chromium or Chrome: install one, or give its path")
        return 1
    problems = look(command)
    print("\n".join(problems) or f"all well; screenshots in {SHOTS}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
