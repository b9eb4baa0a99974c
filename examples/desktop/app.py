"""A window that completes what you type and flags spam, with both models on this machine.

python examples/first_minute.py     # makes the bundles
python examples/desktop/app.py
"""

from __future__ import annotations

import argparse
import logging
import tkinter as tk
from pathlib import Path

from window import Window
from worker import Worker

HERE = Path(__file__).parent
SHIPPED = HERE / "bundles"  # where the frozen application has them


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = SHIPPED if SHIPPED.exists() else HERE.parent / "out"
    arguments.add_argument("--bundles", type=Path, default=default, help="the folder that holds both bundles")
    arguments.add_argument("--length", type=int, default=24, help="tokens of a completion, at most")
    arguments.add_argument("--verbose", action="store_true", help="say on standard error what the models do")
    asked = arguments.parse_args()
    logging.basicConfig(level=logging.INFO if asked.verbose else logging.WARNING, format="%(name)s: %(message)s")

    worker = Worker(asked.bundles, asked.length)
    try:
        root = tk.Tk(className="Torchless")
    except tk.TclError as error:
        raise SystemExit(f"no window: {error}") from None
    Window(root, worker)
    root.update()  # on the screen before the models are opened
    worker.start()
    try:
        root.mainloop()
    finally:
        worker.close()
        worker.join()


if __name__ == "__main__":
    main()
