"""``mmalign label`` in a real browser: judgements by key, words marked as wrong, a server that is killed twice, a run on what came of it.

    python scripts/browser_label.py            # needs playwright, and a chromium that is installed (CHROMIUM=/path/to/it)
    python scripts/browser_label.py --model text/dpo --shots FOLDER --train text/dpo steps=4
    python scripts/browser_label.py --model moving_digits/flow_grpo --judgements 6      # videos, which have to play

The server dies once before a key is pressed and once in the moment after. Prints what was pressed and what the file of pairs holds, and
ends with 1 where a judgement is lost, twice there or another one than was meant, and where the page has an error of its own.
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

LAST_WORD = """(place) => {
  const words = document.querySelector(`.words[data-place='${place}']`).firstChild, range = document.createRange();
  const start = words.data.search(/[A-Za-z0-9]+[^A-Za-z0-9]*$/);
  range.setStart(words, start); range.setEnd(words, start + 1);
  const box = range.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}"""
PLAYS = """async () => {
  const all = [...document.querySelectorAll('.output video')], ticks = all.map(() => 0);
  all.forEach((one, number) => one.addEventListener('timeupdate', () => ticks[number]++));
  await new Promise((done) => setTimeout(done, 2000));
  const apart = Math.max(...all.map((one) => one.currentTime)) - Math.min(...all.map((one) => one.currentTime));
  const away = Math.min(apart, all[0].duration - apart);
  return ticks.every((count) => count > 1) && all.every((one) => !one.paused && one.videoWidth > 0) && away < 0.2;
}"""


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


def marks(page: Page, place: int) -> str:
    """Marks the last word of a text by the mouse and the key, as a person does; the word."""
    x, y = page.evaluate(LAST_WORD, place)
    page.mouse.dblclick(x, y)
    page.keyboard.press("x")
    return page.inner_text(f".words[data-place='{place}'] mark")


def plays(page: Page) -> bool:
    """Whether all videos on the page get on by themselves, at the same moment of each."""
    page.wait_for_function("[...document.querySelectorAll('.output video')].every((one) => one.readyState > 1)")
    return bool(page.evaluate(PLAYS))


def killed(server: subprocess.Popen[str]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits/demo")
    parser.add_argument("--judgements", type=int, default=20)
    parser.add_argument("--port", type=int, default=8231)
    parser.add_argument("--shots", type=Path)
    parser.add_argument(
        "--train", nargs="+", default=[], metavar="CONFIG [key=value]", help="what is trained on the labels, and its report"
    )
    return parser.parse_args()


def main() -> None:
    settings = options()
    folder = Path(tempfile.mkdtemp())
    labels, prompts = folder / "labels.jsonl", folder / "prompts.txt"
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    prompts.write_text("".join(f"a handwritten {digits[number % 10]}\n" for number in range(settings.judgements)))
    own = ["--prompts", str(prompts)] if settings.model.startswith("digits") else ["--limit", str(settings.judgements)]
    server = serve([str(labels), "--model", settings.model, *own], settings.port)
    meant, errors = {}, []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium") or None)
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{settings.port}/")
        page.fill("#annotator", "ann")
        page.keyboard.press("Enter")
        page.wait_for_selector(".output")
        if settings.shots:
            settings.shots.mkdir(parents=True, exist_ok=True)
        kind = page.evaluate("item.kind")
        if kind == "video" and not plays(page):
            errors.append("a video does not play")
        if kind == "text":
            marks(page, 0)
        shots(page, settings.shots, "label")
        page.reload()  # and the mark is gone, which no key has sent
        page.wait_for_selector(".output")
        before, after = settings.judgements // 4, settings.judgements * 3 // 5  # it dies before one key, and in the moment after another
        for number in range(settings.judgements):
            item, key = page.evaluate("item.id"), KEYS[number % len(KEYS)]
            shown = page.evaluate("item.kind === 'text' ? item.outputs : null")
            word = marks(page, number % 2) if kind == "text" and number % 3 == 0 else ""
            gone = f"(!item || item.id !== {json.dumps(item)})"
            if number == before:
                killed(server)
            page.keyboard.press(key)
            if number == after:
                killed(server)
            if number in (before, after):
                page.wait_for_function(f"!document.getElementById('alarm').hidden || {gone}")
                print(f"killed; the page says: {page.inner_text('#alarm') or 'nothing, the word had come through'}")
                server = serve([str(labels)], settings.port)
            page.wait_for_function(gone)
            meant[item] = (key, shown, number % 2, word)
        seen = judged(page)
        browser.close()
    killed(server)
    rows = {row["id"]: row for row in map(json.loads, labels.read_text().splitlines())}
    log = [json.loads(line) for line in (folder / "labels" / "judgements.jsonl").read_text().splitlines()]
    order = {line["item"]: line["shown"] for line in log}
    items = {row["id"]: row for row in map(json.loads, (folder / "labels" / "items.jsonl").read_text().splitlines())}
    wrong = [item for item, (key, *_) in meant.items() if not is_meant(rows.get(item), key, items[item], order[item])]
    wrong += [item for item, (_, shown, place, word) in meant.items() if word and not is_marked(rows.get(item), shown, place, word)]
    print(
        f"{len(meant)} keys pressed, {seen} judged by the page's count, {len(log)} lines of log, {len(rows)} pairs, {len(wrong)} wrong; "
        f"{sum(bool(word) for *_, word in meant.values())} with a marked word; errors of the page: {errors or 'none'}"
    )
    print(f"labels: {labels}")
    trained = not settings.train or train(folder, labels, kind, settings.train)
    sys.exit(bool(wrong or errors) or seen != len(meant) or set(order) != set(meant) or not trained)


def train(folder: Path, labels: Path, kind: str, words: list[str]) -> bool:
    """Trains on the labels; whether there is a report that knows as many pairs as are in the file."""
    records = f"{{use: {'texts' if kind == 'text' else 'pairs'}, path: {labels}}}"
    command = [sys.executable, "-m", "mmalign", "train", *words, f"records={records}", "run.name=labelled", f"run.folder={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = folder / "labelled" / "report.html"
    print(f"trained on them: {report}")
    return report.is_file()


def is_marked(row: dict | None, shown: list[str], place: int, word: str) -> bool:
    """Whether a row says of the text that stood at a place that this word of it is wrong, and of the other text nothing."""
    if row is None:
        return True  # skipped
    side = "chosen" if row["chosen"] == shown[place] else "rejected"
    other = "rejected" if side == "chosen" else "chosen"
    spans = row.get(f"wrong_{side}", [])
    return [row[side][start:end] for start, end in spans] == [word] and f"wrong_{other}" not in row


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
