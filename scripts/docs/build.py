"""The documentation site: every page, link and anchor checked, into a folder that a browser opens without a server.

python scripts/docs/build.py                   # into build/site; open build/site/index.html
python scripts/docs/build.py --out public      # elsewhere
python scripts/docs/build.py --serve           # at http://127.0.0.1:8000, made anew when a page changes

Needs the extra ``docs``. A warning (a link that leads nowhere, a heading that is not there) is an error.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Builds the site, or serves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER.parents[1] / "build" / "site", help="the folder; its contents are replaced")
    parser.add_argument("--serve", action="store_true", help="serve it while pages are written")
    args = parser.parse_args()
    sys.path.insert(0, str(FOLDER.parents[1]))
    warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # of an image library that no page needs
    from mkdocs.__main__ import cli

    command = ["serve"] if args.serve else ["build", "--site-dir", str(args.out.resolve())]
    cli([*command, "--strict", "--config-file", str(FOLDER / "mkdocs.yml")], standalone_mode=False)
    print(f"{args.out / 'index.html'}")


if __name__ == "__main__":
    main()
