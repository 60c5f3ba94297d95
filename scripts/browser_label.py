"""``mmalign label`` in a real browser: judgements by key, a server that is killed between them, a loader that reads what came of it.

    python scripts/browser_label.py            # needs playwright, and a chromium that is installed (CHROMIUM=/path/to/it)
    python scripts/browser_label.py --model text/dpo --shots FOLDER

Prints what was pressed and what the file of pairs holds, and ends with 1 where a judgement is lost, twice there or another one than was
meant.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

KEYS = ("1", "5", "2", "4", "3", "ArrowLeft", "ArrowRight", "Shift+ArrowLeft", "ArrowDown", "b", "s")
MEANS = {  # key -> (place of the better output, strength); None: a tie, and of skipped items no row
    "1": (0, 1.0), "ArrowLeft": (0, 1.0), "2": (0, 0.75), "Shift+ArrowLeft": (0, 0.75),
    "5": (1, 1.0), "ArrowRight": (1, 1.0), "4": (1, 0.75),
    "3": (None, 0.5), "ArrowDown": (None, 0.5), "b": (None, 0.5),
}  # fmt: skip


def serve(words: list[str], port: int) -> subprocess.Popen[str]:
    """A server that answers."""
    command = [sys.executable, "-m", "mmalign", "label", *words, "--no-open", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("judge at "):
            return process
    raise SystemExit(f"the server did not start: {command}")


def shots(page: Page, folder: Path | None, name: str) -> None:
    """Pictures of the page, narrow and wide, light and dark; none without a folder."""
    if folder is None:
        return
    for width, height in ((390, 844), (1280, 800)):
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"{name}_{width}_{scheme}.png")


def judged(page: Page) -> int:
    return int(page.inner_text("#count").split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits/demo")
    parser.add_argument("--judgements", type=int, default=20)
    parser.add_argument("--port", type=int, default=8231)
    parser.add_argument("--shots", type=Path)
    settings = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    labels, prompts = folder / "labels.jsonl", folder / "prompts.txt"
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    prompts.write_text("".join(f"a handwritten {digits[number % 10]}\n" for number in range(settings.judgements)))
    own = ["--prompts", str(prompts)] if settings.model.startswith("digits") else ["--limit", str(settings.judgements)]
    server = serve([str(labels), "--model", settings.model, *own], settings.port)
    meant = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium") or None)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{settings.port}/")
        page.fill("#annotator", "ann")
        page.keyboard.press("Enter")
        page.wait_for_selector(".output")
        if settings.shots:
            settings.shots.mkdir(parents=True, exist_ok=True)
        shots(page, settings.shots, "label")
        for number in range(settings.judgements):
            item, key = page.evaluate("item.id"), KEYS[number % len(KEYS)]
            shown = page.evaluate("item.kind === 'text' ? item.outputs : null")
            if number == settings.judgements // 2:  # it dies before the key is pressed, and comes back after
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                page.keyboard.press(key)
                page.wait_for_selector("#alarm:not([hidden])")
                print(f"killed; the page says: {page.inner_text('#alarm')}")
                server = serve([str(labels)], settings.port)
            else:
                page.keyboard.press(key)
            page.wait_for_function(f"!item || item.id !== {json.dumps(item)}")
            meant[item] = (key, shown)
        seen = judged(page)
        browser.close()
    os.killpg(server.pid, signal.SIGKILL)
    rows = {row["id"]: row for row in map(json.loads, labels.read_text().splitlines())}
    log = [json.loads(line) for line in (folder / "labels" / "judgements.jsonl").read_text().splitlines()]
    order = {line["item"]: line["shown"] for line in log}
    items = {row["id"]: row for row in map(json.loads, (folder / "labels" / "items.jsonl").read_text().splitlines())}
    wrong = [item for item, (key, _) in meant.items() if not is_meant(rows.get(item), key, items[item], order[item])]
    print(
        f"{len(meant)} keys pressed, {seen} judged by the page's count, {len(log)} lines of the log, {len(rows)} pairs, {len(wrong)} wrong"
    )
    print(f"labels: {labels}")
    sys.exit(bool(wrong) or seen != len(meant) or len(log) != len(meant))


def is_meant(row: dict | None, key: str, item: dict, order: list[int]) -> bool:
    """Whether a row of the file of pairs is what a key says of an item whose outputs stood in an order."""
    if key == "s":
        return row is None
    place, strength = MEANS[key]
    if row is None or row["strength"] != strength:
        return False
    return place is None or row["chosen"].endswith(item["outputs"][order[place]])


if __name__ == "__main__":
    main()
