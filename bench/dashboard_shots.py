"""Screenshots of the dashboard for the docs: two tenants on the embedded model, and a spike of the second one.

`python -m bench.dashboard_shots docs/images` starts a server, loads it for a minute and a half, and photographs it in
headless Chromium (`pip install -e ".[test]"`, Debian's chromium and chromium-driver): light, dark, and on a phone.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from selenium import webdriver

from bench.shared.flags import folder_to_write

TENANTS = """
[tenants.chat]
ttft_slo_s = 0.25
tpot_slo_s = 0.03
weight = 2.0

[tenants.batch]
ttft_slo_s = 8.0
kv_max = 0.8
"""
KEYS = {"chat": "chat-key-1", "batch": "batch-key-1"}
ADMIN = "admin-key-1"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def open_browser(profile: str, width: int, height: int) -> webdriver.Chrome:
    """Debian's Chromium, with a console log and an empty profile. A phone's width is told to the page, too."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    resize(browser, width, height)
    return browser


def resize(browser: webdriver.Chrome, width: int, height: int, scale: float = 1.0) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def set_scheme(browser: webdriver.Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def photograph(browser: webdriver.Chrome, path: Path, width: int, scale: float = 1.0) -> None:
    """The whole page at a width."""
    resize(browser, width, 900, scale)
    time.sleep(1.5)
    height = browser.execute_script("return document.documentElement.scrollHeight")
    resize(browser, width, height, scale)
    time.sleep(1.5)
    browser.get_screenshot_as_file(str(path))


class Load:
    """Clients of one tenant: each sends a request, reads it, and sends the next."""

    def __init__(self, url: str, tenant: str, clients: int, prompt_words: int, tokens: int, pause_s: float) -> None:
        self._body: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.8}
        self._url, self._words, self._pause_s = url, prompt_words, pause_s
        self._headers = {"Authorization": f"Bearer {KEYS[tenant]}"}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        shared = "ACT I. SCENE I. " * 6
        with httpx.Client(base_url=self._url, timeout=120, headers=self._headers) as http:
            sent = 0
            while not self._over.is_set():
                prompt = shared + f"Client {client}, line {sent}: " + "my lord " * self._words
                http.post("/v1/completions", json=self._body | {"prompt": prompt})
                sent += 1
                self._over.wait(self._pause_s)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=folder_to_write, help="where the pictures go")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tenants = Path(scratch) / "tenants.toml"
        tenants.write_text(TENANTS)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "jaxserve", "serve", f"--port={port}", f"--tenants={tenants}",
                   "--max-num-seqs=16", "--max-num-batched-tokens=256", "--num-blocks=220", "--block-size=16",
                   "--ordering=fair", "--offload-host-bytes=4000000", "--log-level=warning"]  # fmt: skip
        names = {
            "JAXSERVE_API_KEYS": ",".join(f"{tenant}:{key}" for tenant, key in KEYS.items()),
            "JAXSERVE_ADMIN_KEY": ADMIN,
        }
        server = subprocess.Popen(command, env=os.environ | names)
        try:
            shoot(f"http://127.0.0.1:{port}", given.folder, scratch)
        finally:
            server.terminate()
            server.wait(30)


def shoot(url: str, folder: Path, scratch: str) -> None:
    while True:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    browser = open_browser(f"{scratch}/profile", 1280, 900)
    loads = [Load(url, "chat", 5, 4, 40, 0.15)]
    try:
        browser.get(f"{url}/dashboard")
        browser.execute_script(f"sessionStorage.setItem('jaxserve-admin-key', {json.dumps(ADMIN)})")
        browser.get(f"{url}/dashboard")
        time.sleep(60)
        loads.append(Load(url, "batch", 36, 70, 96, 0.0))
        time.sleep(20)
        set_scheme(browser, "light")
        photograph(browser, folder / "dashboard-light.png", 1280)
        set_scheme(browser, "dark")
        photograph(browser, folder / "dashboard-dark.png", 1280)
        photograph(browser, folder / "dashboard-phone.png", 390, scale=1.5)
    finally:
        for load in loads:
            load.stop()
        browser.quit()


if __name__ == "__main__":
    main()
