"""``mmalign watch`` in a real browser beside a run that trains: a new step appears without reloading, and two runs stand side by side.

    python scripts/browser_watch.py            # needs playwright, and a chromium that is installed (CHROMIUM=/path/to/it)
    python scripts/browser_watch.py --config text/grpo --shots FOLDER

Ends with 1 where a page is loaded again, where no new step is seen, or where a page looks for something elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from browser_label import shots
from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="digits/demo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--port", type=int, default=8331)
    parser.add_argument("--shots", type=Path)
    settings = parser.parse_args()
    if settings.shots:
        settings.shots.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    mmalign = [sys.executable, "-m", "mmalign"]
    train = [*mmalign, "train", settings.config, f"steps={settings.steps}", "evaluation.every=2", f"run.folder={folder}"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    watch = subprocess.Popen([*mmalign, "watch", str(folder), "--no-open", "--port", str(settings.port)], stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None and watch.stdout.readline().startswith("watch "), "the server did not start"
    elsewhere: list[str] = []
    seen: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium") or None)
        page = browser.new_page()
        page.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(("http://127", "data:")) else None)
        page.goto(f"http://127.0.0.1:{settings.port}/")
        page.evaluate("window.marked = true")
        page.wait_for_function("document.getElementById('words').textContent.startsWith('No run')")
        runs = [subprocess.Popen([*train, "run.name=first", "run.seed=0"], **quiet)]
        started = time.monotonic()
        while runs[0].poll() is None and time.monotonic() - started < 600:
            page.wait_for_timeout(500)
            step = page.evaluate(
                "document.querySelector('iframe:not(.coming)')?.contentDocument.querySelector('.eyebrow, h1')?.textContent"
            )
            word = page.evaluate("document.querySelector('nav small')?.textContent")
            if word and word.split(";")[0] not in seen:
                seen.append(word.split(";")[0])
                print(f"{time.monotonic() - started:5.1f} s  {seen[-1]}  ({step})")
        subprocess.run([*train, "run.name=second", "run.seed=1", "optimizer.rate=3e-3"], check=True, **quiet)
        page.wait_for_selector("nav button:nth-child(3)")
        page.click("nav button:nth-child(1)")
        page.wait_for_function("document.querySelector('iframe:not(.coming)').contentDocument.querySelectorAll('[data-run]').length === 2")
        shots(page, settings.shots, "watch_beside")
        page.click("nav button:nth-child(2)")
        page.wait_for_function("document.querySelector('iframe:not(.coming)').src.includes('/pages/')")
        page.wait_for_timeout(2500)
        shots(page, settings.shots, "watch_run")
        reloaded = not page.evaluate("window.marked === true")
        browser.close()
    watch.send_signal(signal.SIGTERM)
    print(f"{len(seen)} states seen, reloaded: {reloaded}, asked elsewhere: {len(elsewhere)}, watch ended with {watch.wait()}")
    sys.exit(reloaded or len(seen) < 3 or bool(elsewhere))


if __name__ == "__main__":
    main()
