"""The dashboard: its feed by HTTP, and the page in a real browser, under load."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jaxserve.core.clock import MonotonicClock
from jaxserve.core.tenants import Tenant, Tenants
from jaxserve.server.keys import Keys
from tests.engine.conftest import build_engine
from tests.server.conftest import PATIENCE_S, Running, fake_service, serve

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
ADMIN = "the-admin-key"
KEYS = {"chat": "chat-key-1", "batch": "batch-key-1"}
TENANTS = Tenants([Tenant(name="chat", ttft_slo_s=0.3, tpot_slo_s=0.03), Tenant(name="batch", kv_max=0.7)])


def slow_engine(**settings: Any) -> Any:
    """Steps of 10 ms on the real clock, and few blocks: sequences wait, and some are preempted to host memory."""
    usual: dict[str, Any] = {"blocks": 30, "tiers": (40, 0, 0), "tenants": TENANTS, "max_num_seqs": 6}
    engine = build_engine(clock=MonotonicClock(), **usual | settings)
    submit = engine.fake.submit

    def slow(plan):
        time.sleep(0.01)
        return submit(plan)

    engine.fake.submit = slow
    return engine


@pytest.fixture
def guarded() -> Iterator[Running]:
    yield from serve(fake_service(slow_engine()), Keys({key: tenant for tenant, key in KEYS.items()}, ADMIN))


class Load:
    def __init__(self, url: str) -> None:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url, tenant, i)) for tenant in KEYS for i in range(8)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str, tenant: str, client: int) -> None:
        headers = {"Authorization": f"Bearer {KEYS[tenant]}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            while not self._over.is_set():
                body = {"prompt_token_ids": [client, *range(20)], "max_tokens": 12 if tenant == "chat" else 40}
                assert http.post("/generate", json=body).status_code == 200

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def events(running: Running, count: int, **headers: str) -> list[dict[str, Any]]:
    found = []
    with running.client.stream("GET", "/dashboard/feed", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line[6:]))
            if len(found) == count:
                return found
    return found


# --- the feed -----------------------------------------------------------------------------------------------------


def test_who_may_read_the_feed(guarded: Running) -> None:
    client = guarded.client
    assert client.get("/dashboard").status_code == client.get("/dashboard/charts.js").status_code == 200
    assert client.get("/dashboard/routes.py").status_code == 401, "only the page's own files"
    assert client.get("/dashboard/state").status_code == 403
    of_tenant = {"Authorization": f"Bearer {KEYS['chat']}"}
    assert client.get("/dashboard/state", headers=of_tenant).status_code == 403
    assert client.get("/dashboard/state", headers={"Authorization": f"Bearer {ADMIN}"}).status_code == 200


def test_the_printed_address_leads_to_the_page(guarded: Running) -> None:
    answer = guarded.client.get("/", follow_redirects=True)
    assert answer.status_code == 200 and answer.url.path == "/dashboard" and "<html" in answer.text


def test_open_without_keys(running: Running) -> None:
    assert running.client.get("/dashboard/state").json()["phase"] == "ready"


def test_the_page_names_no_other_place(running: Running) -> None:
    answer = running.client.get("/dashboard")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for name in ("", "/dashboard.css", "/dashboard.js", "/charts.js"):
        text = running.client.get(f"/dashboard{name}").text
        assert "https://" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.slow
def test_the_feed_adds_up_and_repeats_nothing(guarded: Running) -> None:
    load = Load(guarded.url)
    try:
        views = events(guarded, 4, Authorization=f"Bearer {ADMIN}")
    finally:
        load.stop()
    totals = httpx.get(f"{guarded.url}/dashboard/state", headers={"Authorization": f"Bearer {ADMIN}"}).json()
    for kind in ("steps", "requests", "points"):
        numbers = [entry["number"] for view in views for entry in view[kind]]
        kept = [entry["number"] for entry in totals[kind]]  # a step that only moves blocks has a number and no entry
        since = max(numbers[0], kept[0])
        assert [n for n in numbers if n >= since] == [n for n in kept if since <= n <= numbers[-1]], "gaps or repeats"
        assert sorted(set(numbers)) == numbers, "repeats"
    last = views[-1]
    assert {tenant["name"] for tenant in last["tenants"]} == {"chat", "batch", "default"}
    assert sum(last["kv"][state] for state in ("free", "cached", "used", "shared")) == 30 == len(last["kv"]["map"])
    assert sum(last["waiting_by_reason"].values()) == last["waiting"]
    assert "settings" not in last and views[0]["settings"]["max_num_seqs"] == 6
    assert not any("keys" in tenant for tenant in last["tenants"])
    for request in (request for view in views for request in view["requests"]):
        assert request["stalled_s"] <= request["queue_s"] + request["prefill_s"] + request["decode_s"] + 1e-6
        assert request["ttft_s"] == pytest.approx(request["queue_s"] + request["prefill_s"])
    assert sum(t["generation_tokens"] for t in totals["tenants"]) == totals["totals"]["generation_tokens"] > 0


def test_no_prompt_leaves_with_the_feed(running: Running) -> None:
    body = {"prompt_token_ids": [77, 78, 79, 80, 81], "max_tokens": 3, "request_id": "mine"}
    assert running.client.post("/generate", json=body).status_code == 200
    state = running.client.get("/dashboard/state").json()
    assert state["requests"][-1]["id"] == "mine" and state["requests"][-1]["prompt_tokens"] == 5
    assert "77, 78" not in json.dumps(state)


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    for program in (CHROMIUM, DRIVER):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium", reason='selenium is missing: pip install -e ".[test]"')
    from bench.dashboard_shots import open_browser

    found = open_browser(str(tmp_path / "profile"), 1280, 900)
    yield found
    found.quit()


def until(browser: Any, script: str, seconds: float = 2 * PATIENCE_S) -> Any:
    end = time.monotonic() + seconds
    while not (value := browser.execute_script(f"return {script}")):
        assert time.monotonic() < end, f"never true: {script}; the page says: {text(browser, 'body')}"
        time.sleep(0.1)
    return value


def text(browser: Any, selector: str) -> str:
    return browser.execute_script(f"return document.querySelector('{selector}').innerText")


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


EMPTY = """[...document.querySelectorAll('canvas')].filter((canvas) => canvas.offsetParent).filter((canvas) => {
    const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return !new Uint32Array(image.data.buffer).some((pixel) => pixel);
}).length"""


BARS_OVER_LABELS = """(() => {
    const canvas = document.getElementById('steps'), { width, height } = canvas, scale = width / canvas.clientWidth;
    const copy = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const low = copy.getImageData(0, height * 0.75, 33 * scale, height * 0.25);
    return new Uint32Array(low.data.buffer).some((pixel) => pixel);
})()"""


@pytest.mark.slow
def test_the_page_under_load(guarded: Running, browser: Any) -> None:
    load = Load(guarded.url)
    try:
        browser.get(f"{guarded.url}/dashboard")
        until(browser, "!document.getElementById('gate').hidden")
        refused = errors(browser)  # the browser tells of every 403
        assert len(refused) == 1 and "403" in refused[0]
        browser.find_element("id", "key").send_keys(ADMIN)
        browser.find_element("css selector", "#gate button").click()
        until(browser, "document.getElementById('status').textContent === 'ready'")
        until(browser, "Number(document.getElementById('out-rate').textContent.replace(/,/g, '')) > 0")
        until(browser, "document.querySelectorAll('.request').length > 5")
        until(browser, "document.querySelectorAll('.reason').length > 0")
        names = browser.execute_script("return [...document.querySelectorAll('.tenant .name')].map((n) => n.innerText)")
        assert names == ["chat", "batch", "default"]
        assert browser.execute_script(f"return {EMPTY}") == 0, "a canvas is empty"

        steps = text(browser, "#step-now")
        until(browser, f"document.getElementById('step-now').textContent !== {json.dumps(steps)}")

        dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        browser.find_element("id", "theme").click()
        light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert dark != light

        from bench.dashboard_shots import resize

        for width in (390, 768, 1280, 1920):
            resize(browser, width, 900)
            until(browser, f"window.innerWidth === {width}")
            overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
            assert overflow <= 0, f"the page is wider than a screen of {width}"
            assert not browser.execute_script(f"return {BARS_OVER_LABELS}"), f"bars hide their scale at {width}"
        origins = browser.execute_script(
            "return [...new Set(performance.getEntriesByType('resource').map((r) => new URL(r.name).origin))]"
        )
        assert origins == [guarded.url]
        assert errors(browser) == []
    finally:
        load.stop()


CUT = """[...document.querySelectorAll('.tile b, .tile small, .request > span, .facts div, .measure, h2, #live td')]
    .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map((e) => e.innerText)"""
"""Texts that do not fit into their place."""


@pytest.mark.slow
def test_a_starved_and_a_refused_tenant_are_red_and_a_request_can_be_opened(browser: Any) -> None:
    tenants = Tenants([Tenant(name="flood"), Tenant(name="quiet"), Tenant(name="rated", requests_per_s=1.0)])
    engine = slow_engine(tenants=tenants, tiers=(0, 0, 0), max_num_seqs=2)
    from bench.dashboard_shots import resize

    for running in serve(fake_service(engine), Keys(None, ADMIN)):
        over = threading.Event()

        def call(tenant: str, running: Running = running, over: threading.Event = over) -> None:
            with httpx.Client(base_url=running.url, timeout=60) as http:
                while not over.is_set():
                    body = {"prompt_token_ids": [1, 2, 3], "max_tokens": 60, "tenant": tenant}
                    http.post("/generate", json=body)
                    over.wait(0.05)

        threads = [threading.Thread(target=call, args=(name,)) for name in [*["flood"] * 40, "quiet", "rated", "rated"]]
        for thread in threads:
            thread.start()
        try:
            browser.get(f"{running.url}/dashboard")
            until(browser, "!document.getElementById('gate').hidden")
            assert "API keys" not in text(browser, "#gate"), "no tenant has one"
            assert browser.execute_script("return document.querySelector('main').hidden"), "nothing is known yet"
            browser.execute_script(f"sessionStorage.setItem('jaxserve-admin-key', {json.dumps(ADMIN)})")
            browser.get(f"{running.url}/dashboard")
            until(browser, "document.getElementById('status').textContent === 'ready'")
            red = "[...document.querySelectorAll('.tenant.alarm')].map((e) => e.innerText).join('|')"
            until(browser, f"/quiet[^|]*starved for/.test({red})")
            until(browser, f"/rated[^|]*refused in 30 s: rate_limit/.test({red})")
            assert "flood" not in browser.execute_script(f"return {red}")
            until(browser, "Number(document.getElementById('refused').textContent) > 0")
            assert "rate_limit" in text(browser, "#refused-why") and text(browser, "#failed") == "0"
            for width in (390, 1440, 2560):
                resize(browser, width, 900)
                until(browser, f"window.innerWidth === {width}")
                assert browser.execute_script(f"return {CUT}") == [], f"at {width}"
                left = "document.querySelector('{}').getBoundingClientRect().left"
                content = browser.execute_script(f"return {left.format('h1')} - {left.format('.tile')}")
                assert abs(content) <= 2, f"the header stands beside the content at {width}"
            browser.execute_script("document.querySelector('.request a').click()")
            until(browser, "document.getElementById('detail').open")
            until(browser, "document.querySelectorAll('#detail caption').length === 2")
            assert "decode" in text(browser, "#detail-content") and "ended with" in text(browser, "#detail-content")
            assert errors(browser)[1:] == [], "after the 403 without the key"
        finally:
            over.set()
            for thread in threads:
                thread.join()


@pytest.mark.slow
def test_a_wrong_key_and_a_server_that_goes_away(browser: Any) -> None:
    servers = serve(fake_service(slow_engine()), Keys({"chat-key-1": "chat"}, ADMIN))
    running = next(servers)
    browser.get(f"{running.url}/dashboard")
    until(browser, "!document.getElementById('gate').hidden")
    browser.find_element("id", "key").send_keys("not-the-key")
    browser.find_element("css selector", "#gate button").click()
    until(browser, "document.getElementById('refusal').textContent.includes('admin key')")
    browser.find_element("id", "key").send_keys(ADMIN)
    browser.find_element("css selector", "#gate button").click()
    until(browser, "document.getElementById('status').textContent === 'ready'")
    next(servers, None)
    until(browser, "document.getElementById('status').className === 'bad'")
