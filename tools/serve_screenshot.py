"""Take a picture of the chat page after an answer of the shipped model.

python tools/serve_screenshot.py docs/images/chat-page.png
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import browser

QUESTION = "What is the sea?"


def main() -> int:
    """Serve the shipped model, ask it something in a browser, and write what that looks like."""
    path = browser.find()
    if path is None:
        print(f"no browser on PATH: none of {', '.join(browser.NAMES)}", file=sys.stderr)
        return 1
    server = subprocess.Popen(
        [sys.executable, "-m", "remoe_edge.cli", "serve", "--port", "0", "--cache", "40%"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        said = next(line for line in server.stderr if line.startswith("ready: "))
        url = said.split("chat at ")[1].split(",")[0]
        with browser.Browser(path) as opened:
            tab = browser.Tab(opened, url, width=960, height=600, dark=False)
            tab.wait("document.getElementById('status').textContent === ''")
            tab.ask("document.getElementById('open-settings').click()")
            for name, value in (("temperature", "0"), ("max_tokens", "90")):
                tab.ask(f"document.getElementById('{name}').value = '{value}'")
            tab.ask("document.getElementById('close-settings').click()")
            tab.wait("JSON.parse(localStorage['remoe-edge'] ?? '{}').settings?.max_tokens === '90'")
            tab.type(QUESTION)
            tab.press("Enter", 13)
            tab.wait("!!document.querySelector('.cost')")
            tab.wait("document.getElementById('stop').hidden")
            Path(sys.argv[1]).write_bytes(tab.picture())
    finally:
        server.terminate()
        server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
