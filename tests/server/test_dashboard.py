"""The dashboard in a real browser: live, by keyboard, by screen reader, and safe from devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from helpers.browser import contrast, pale_texts
from helpers.codec import packed, random_adapter
from helpers.programs import free_port
from helpers.stores import FINGERPRINT, lay_out, put_release
from helpers.waiting import DEADLOCK_S
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.release.manifest import File, Manifest
from rankcast.release.store import Store
from rankcast.simulation.cloud import ServerProcess

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")

expect = playwright.expect
PATIENCE_MS = 1000.0 * DEADLOCK_S
SCRIPT = "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'>"


@dataclass
class Server:
    """A server's process, and devices that ask it."""

    root: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: ServerProcess | None = None
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def database(self) -> str:
        return f"sqlite:///{self.root}/devices.db"

    def start(self) -> None:
        options = ["--store", str(self.root / "store"), "--port", str(self.port),
                   "--database", self.database, *self.options]  # fmt: skip
        self.process = ServerProcess(options, self.root / "log")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()

    def let_in(self, name: str, role: Any = "device") -> str:
        with registry_of(self) as registry:
            self.tokens[name] = registry.add(name, role)
        return self.tokens[name]

    def post(self, device: str, what: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[device]}"}
        answer = httpx2.post(f"{self.url}v1/{what}", json=body, headers=headers, timeout=DEADLOCK_S)
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.content else None

    def plan(self, device: str, **changes: Any) -> Any:
        return self.post(device, "plan", {
            "adapter": "sst2", "base_fingerprint": FINGERPRINT, "deadline_s": 2.0,
            "link": {"snr_db": 5.0, "bandwidth_hz": 1e5}, **changes,
        })  # fmt: skip

    def report(self, device: str, plan: Any, **changes: Any) -> None:
        named = {key: plan[key] for key in ("adapter", "version", "ladder", "n_rungs")}
        self.post(device, "report", {
            **named, "event": "activated", "throughput_bps": 1.5e5,
            "received_bits": plan["bits"], "elapsed_s": 1.25, **changes,
        })  # fmt: skip


def registry_of(server: Server) -> Any:
    from rankcast.server.registry import Registry

    return closing(Registry(server.database))


def fill(root: Path) -> Store:
    """Publish a file whose ranks can be read."""
    store = Store(root / "store")
    made = packed(random_adapter(7, ((24, 16),) * 4, (6, 4, 5, 3)), n_steps=2)
    store.put(header_bytes(made.header))
    for piece in made.chunks:
        store.put(piece)
    file = File.of(made)
    chunks = tuple(
        replace(chunk, loss=0.7 - 0.1 * n, accuracy=0.6 + 0.05 * n)
        for n, chunk in enumerate(file.chunks)
    )
    base = BaseModel("tiny", FINGERPRINT)
    lay_out(store, [Manifest("sst2", 1, base, (replace(file, chunks=chunks),), {})])
    return store


@contextmanager
def running(root: Path, *options: str) -> Iterator[Server]:
    server = Server(root, options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with three devices; one of them has done everything there is."""
    root = tmp_path_factory.mktemp("dashboard")
    fill(root)
    with running(root) as server:
        server.let_in("desk", "operator")
        for name in ("pi-1", "pi-2", "pi-silent"):
            server.let_in(name)
        for snr, event in ((5.0, "activated"), (9.0, "activated"), (-3.0, "rolled-back")):
            plan = server.plan("pi-1", link={"snr_db": snr, "bandwidth_hz": 1e5})
            server.report("pi-1", plan, event=event, message="" if snr > 0 else "It gave NaN.")
        server.report("pi-2", server.plan("pi-2", link={"throughput_bps": 2e5}), elapsed_s=2.5)
        yield server


class Page:
    """A page, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, width: int = 1600, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        self.tab.on("console", lambda m: self.wrong.append(f"console: {m.text}"))
        self.tab.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error("
            "`policy: ${e.violatedDirective}`))"
        )
        self.tab.goto(url)
        self.url = url

    def sign_in(self, token: str) -> None:
        self.tab.get_by_label("Token", exact=True).fill(token)
        self.tab.keyboard.press("Enter")

    def row(self, device: str) -> Any:
        return self.tab.locator("#device-table tbody tr").filter(
            has=self.tab.get_by_role("button", name=device, exact=True)
        )

    def panel(self, title: str) -> Any:
        return self.tab.get_by_role("region", name=title, exact=True)


@contextmanager
def opened(
    browser: Any, server: Server, width: int = 1600, scheme: str = "light"
) -> Iterator[Page]:
    """Open the page as the operator and wait until it shows the devices; nothing may go wrong."""
    page = Page(browser, server.url, width, scheme)
    page.sign_in(server.tokens["desk"])
    expect(page.tab.locator("#connection")).to_have_text("● live")
    page.row("pi-1").get_by_role("button").click()
    expect(page.panel("Link over time").locator("svg").first).to_be_visible()
    expect(page.panel("Ranks of the plan").get_by_role("table")).to_be_visible()
    yield page
    assert {x for x in page.requests if not x.startswith(server.url)} == set()
    # The first question, before there was a token, was answered 401.
    assert [x for x in page.wrong if "401 (Unauthorized)" not in x] == []
    page.context.close()


# Tokens


def test_a_token_is_asked_for_kept_in_the_tab_and_sent_in_a_header(
    browser: Any, server: Server
) -> None:
    page = Page(browser, server.url)
    expect(page.tab.get_by_label("Token", exact=True)).to_be_focused()
    page.sign_in("rc_wrong")
    expect(page.tab.get_by_role("alert")).to_contain_text("not known, or was revoked")
    page.sign_in("two words")
    expect(page.tab.get_by_role("alert")).to_contain_text("without spaces")
    expect(page.tab.locator("main")).to_be_hidden()
    token = server.tokens["desk"]
    page.sign_in(token)
    expect(page.row("pi-1")).to_be_visible()
    assert not any(token in url for url in (*page.requests, page.tab.url))
    assert page.tab.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
    page.tab.reload()
    expect(page.row("pi-1")).to_be_visible()
    page.tab.get_by_role("button", name="Forget token").click()
    expect(page.tab.get_by_label("Token", exact=True)).to_be_visible()
    assert page.tab.evaluate("sessionStorage.length") == 0
    page.context.close()


def test_the_token_of_a_device_shows_that_device(browser: Any, server: Server) -> None:
    page = Page(browser, server.url)
    page.sign_in(server.tokens["pi-2"])
    expect(page.tab.locator("#device-table tbody tr")).to_have_count(1)
    expect(page.tab.get_by_role("heading", name="pi-2")).to_be_visible()
    page.context.close()


# What is shown


def test_plans_and_reports_appear_as_they_happen(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        server.let_in("pi-live")
        narrow = {"snr_db": 5.0, "bandwidth_hz": 10.0}
        plan = server.plan("pi-live", deadline_s=500.0, link=narrow)
        row = page.row("pi-live")
        expect(row).to_contain_text("planned")
        expect(row).to_contain_text("5.0 dB · 10 Hz")
        row.click()
        chunks = page.panel("Chunks")
        expect(chunks.get_by_role("row").nth(1)).to_contain_text("↓ on its way")
        server.report("pi-live", plan, event="rolled-back", message="It gave NaN.")
        expect(row).to_contain_text("↶ rolled back")
        expect(row.get_by_role("cell").nth(4)).to_have_text("150 kbit/s")
        expect(row.get_by_role("cell").nth(5)).to_have_text("1")
        expect(chunks.get_by_role("row").nth(1)).to_contain_text("✕ not active")
        expect(page.tab.locator("#log li").first).to_contain_text("It gave NaN.")
        expect(page.tab.get_by_role("status")).to_contain_text(
            "pi-live: sst2 version 1 rolled back"
        )
        again = server.plan("pi-live", deadline_s=500.0, link=narrow)
        server.report("pi-live", again)
        expect(row).to_contain_text("✓ activated")
        expect(chunks.get_by_role("row").nth(1)).to_contain_text("✓ held")


def test_a_page_that_is_opened_late_shows_what_was(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        link = page.panel("Link over time").locator("svg").first
        words = re.compile(r"Rate of the link in kbit .* 6 points\.")
        expect(link).to_have_attribute("aria-label", words)
        expect(link.locator("circle")).to_have_count(3)
        expect(link.locator("rect")).to_have_count(3)
        ranks = page.panel("Ranks of the plan").get_by_role("table")
        expect(ranks.get_by_role("row")).to_have_count(5)
        expect(page.tab.locator("#chosen-words")).to_contain_text("sst2 version 1 · link -3.0 dB")
        page.row("pi-2").click()
        delivered = page.panel("Delivered against the deadline")
        expect(delivered).to_contain_text("1 came late")
        delivered.get_by_text("Numbers").click()
        cells = delivered.get_by_role("row").nth(1).get_by_role("cell")
        for n, words in enumerate(("2 s", "2.5 s", "activated"), start=4):
            expect(cells.nth(n)).to_have_text(words)
        page.row("pi-silent").click()
        expect(page.panel("Link over time")).to_contain_text(
            "has reported nothing about its link yet"
        )


def test_another_prefix_can_be_looked_at(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        panel = page.panel("Ranks of the plan")
        slider = panel.get_by_role("slider", name="Show chunk")
        slider.focus()
        page.tab.keyboard.press("Home")
        expect(panel).to_contain_text("Ranks after chunk 1 of 6")
        few = sum(map(int, panel.locator(".heat td").all_text_contents()))
        page.tab.keyboard.press("End")
        expect(panel).to_contain_text("Ranks after chunk 6 of 6")
        expect(slider).to_be_focused()
        assert sum(map(int, panel.locator(".heat td").all_text_contents())) > few
        panel.get_by_role("button", name="As planned").click()
        expect(panel).to_contain_text("as planned")


def test_words_of_devices_are_words(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        server.report("pi-2", server.plan("pi-2"), event="failed", message=SCRIPT)
        expect(page.tab.locator("#log li").first).to_contain_text(SCRIPT)
        assert page.tab.evaluate("window.owned") is None
        expect(page.tab.locator("#log script, #log img")).to_have_count(0)


def test_a_server_that_comes_back_is_found_again(browser: Any, tmp_path: Path) -> None:
    fill(tmp_path)
    with running(tmp_path) as server:
        server.let_in("desk", "operator")
        server.let_in("pi-1")
        server.plan("pi-1")
        page = Page(browser, server.url)
        page.sign_in(server.tokens["desk"])
        expect(page.row("pi-1")).to_contain_text("5.0 dB")
        page.tab.evaluate("window.same = true")
        server.stop()
        expect(page.tab.locator("#connection")).to_contain_text("offline")
        expect(page.tab.get_by_role("status")).to_contain_text("Not connected.")
        server.start()
        server.plan("pi-1", link={"snr_db": 8.5, "bandwidth_hz": 1e5})
        expect(page.row("pi-1")).to_contain_text("8.5 dB")
        expect(page.tab.locator("#connection")).to_have_text("● live")
        assert page.tab.evaluate("window.same") is True
        page.context.close()


def test_where_there_is_nothing_it_says_what_to_do(browser: Any, tmp_path: Path) -> None:
    lay_out(Store(tmp_path / "store"), [put_release(Store(tmp_path / "store"), "demo")])
    with running(tmp_path, "--no-auth") as server:
        page = Page(browser, f"{server.url}#device=%E0%A4%A")  # no address of a device
        command = f"rankcast edge sync --server {server.url.rstrip('/')} --adapter demo"
        expect(page.tab.locator("#devices")).to_contain_text("No device has asked yet")
        expect(page.tab.locator("#devices")).to_contain_text(command)
        expect(page.tab.locator("#devices")).to_contain_text("--root root.json")
        expect(page.tab.locator("#devices")).not_to_contain_text("token")
        expect(page.tab.locator("#log-none")).to_be_visible()
        expect(page.tab.get_by_role("button", name="Forget token")).to_be_hidden()
        assert page.wrong == []
        page.context.close()


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_the_first_commands_name_token_and_root(browser: Any, tmp_path: Path, width: int) -> None:
    Store(tmp_path / "store").metadata.mkdir(parents=True)  # nothing is published
    with running(tmp_path) as server:
        page = Page(browser, server.url, width)
        page.sign_in(server.let_in("desk", "operator"))
        devices, adapters = page.tab.locator("#devices"), page.tab.locator("#adapters")
        expect(devices).to_contain_text("rankcast devices add pi-1 > token")
        expect(devices).to_contain_text("--root root.json --token-file token")
        expect(adapters).to_contain_text("rankcast keys init --keys ~/keys --store store")
        expect(adapters).to_contain_text("rankcast publish demo.rcast --name demo")
        assert page.tab.evaluate("document.documentElement.scrollWidth") == width
        page.context.close()


# Who cannot see colours, or the screen, or use a mouse


def test_a_device_is_chosen_by_keyboard_alone(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        page.tab.reload()
        expect(page.row("pi-1")).to_have_class("chosen")
        keys = page.tab.keyboard
        keys.press("Tab")
        expect(page.tab.get_by_role("link", name="Skip to the devices")).to_be_focused()
        keys.press("Enter")
        for _ in range(20):
            keys.press("Tab")
            if page.tab.evaluate("document.activeElement.matches('.pick')"):
                break
        expect(page.row("pi-1").get_by_role("button")).to_be_focused()
        keys.press("ArrowDown")
        expect(page.row("pi-2").get_by_role("button")).to_be_focused()
        keys.press("End")
        expect(page.row("pi-silent").get_by_role("button")).to_be_focused()
        width = page.tab.evaluate(
            "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
        )
        assert width >= 2
        keys.press("Enter")
        expect(page.tab.get_by_role("heading", name="pi-silent")).to_be_visible()
        expect(page.row("pi-silent").get_by_role("button")).to_have_attribute(
            "aria-pressed", "true"
        )
        seen = page.tab.get_by_role("columnheader", name="Last seen")
        seen.get_by_role("button").focus()
        keys.press("Enter")
        expect(seen).to_have_attribute("aria-sort", "ascending")
        expect(page.tab.locator("#device-table tbody tr").last).to_contain_text("pi-silent")
        page.tab.get_by_label("Filter").fill("pi-2")
        expect(page.tab.locator("#device-table tbody tr")).to_have_count(1)


NAMELESS = """() => {
  const named = (e) => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || e.labels?.length || e.textContent.trim() || e.getAttribute('alt') !== null;
  const wanted = 'button, input, img, a[href], [role=img], [role=region], section, table';
  return [...document.querySelectorAll(wanted)]
    .filter((e) => e.checkVisibility() && !named(e)).map((e) => e.outerHTML.slice(0, 80));
}"""
DOUBLE = """() => {
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  return ids.filter((id, i) => ids.indexOf(id) !== i);
}"""
LEVELS = """() => [...document.querySelectorAll('h1, h2, h3')]
  .filter((e) => e.checkVisibility()).map((e) => Number(e.tagName[1]))"""


def test_it_has_landmarks_headings_and_names(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        assert page.tab.evaluate("document.documentElement.lang") == "en"
        for role in ("banner", "main", "contentinfo"):
            expect(page.tab.get_by_role(role)).to_have_count(1)
        assert page.tab.evaluate(NAMELESS) == []
        assert page.tab.evaluate(DOUBLE) == []
        levels = page.tab.evaluate(LEVELS)
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        charts = page.tab.get_by_role("img").all()
        assert len(charts) >= 5
        assert all(len(c.get_attribute("aria-label")) > 30 for c in charts)
        # What scrolls can be scrolled by keyboard.
        stuck = "[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex < 0).length"
        assert page.tab.evaluate(stuck) == 0
        table = page.tab.get_by_role("table", name="Choose a device")
        assert "columnheader" in table.aria_snapshot()


QUIET = ".quiet, .skip, noscript, title, button:disabled, .on-lost"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Any, server: Server, scheme: str) -> None:
    with opened(browser, server, scheme=scheme) as page:
        for _ in range(2):
            background = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (contrast(background, "rgb(0, 0, 0)") > 10) is (scheme == "light")
            assert pale_texts(page.tab, QUIET) == {}
            # Then as the person chose, against what the system says.
            scheme = "dark" if scheme == "light" else "light"
            theme = page.tab.get_by_role("button", name="Theme")
            while theme.text_content() != f"Theme: {scheme}":
                theme.click()


# 9 shades times two themes, whichever of them the plan happens to show.
SHADES = """() => [...document.querySelectorAll('.scale span')].map((e) => {
  const style = getComputedStyle(e);
  return [style.color, style.backgroundColor];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_can_be_read_on_every_shade(browser: Any, server: Server, scheme: str) -> None:
    with opened(browser, server, scheme=scheme) as page:
        shades = page.tab.evaluate(SHADES)
        assert len(shades) == 9
        assert min(contrast(ink, paper) for ink, paper in shades) >= 4.5


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_the_page_does_not_scroll_sideways(browser: Any, server: Server, width: int) -> None:
    with opened(browser, server, width) as page:
        assert page.tab.evaluate("document.documentElement.scrollWidth") == width
        right = """Math.max(...[...document.querySelectorAll('.card, .body > svg, .tiles > div')]
          .map((e) => e.getBoundingClientRect().right))"""
        assert page.tab.evaluate(right) <= width
        if width == 1440:  # the table of devices need not be scrolled there
            box = "document.querySelector('#devices .scroll')"
            assert page.tab.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")


def test_rollouts_show_their_stages_their_failures_and_why_they_were_halted(
    browser: Any, server: Server
) -> None:
    rollout = {
        "number": 7, "adapter": "sst2", "version": 2, "before": 1, "state": "halted", "stage": 1,
        "reason": "Stage 1: 2 of 20 devices failed.", "target": "group eu", "changed_s": 1.9e9,
        "stages": [{"share": 0.1, "n_devices": 20, "states": {"activated": 3}, "n_failed": 2},
                   {"share": 1.0, "n_devices": 180, "states": {"waiting": 180}, "n_failed": 0}],
        "failures_by_group": {"eu": 2, "": 1},
        "failed": [{"device": "pi-1", "stage": 1, "state": "rolled-back", "message": "<b>NaN</b>"}],
    }  # fmt: skip
    with opened(browser, server) as page:
        card = page.tab.get_by_role("region", name="Rollouts", exact=True)
        expect(card).to_be_hidden()
        draw = """async (rollout) => {
          const { drawRollouts } = await import('/dashboard/rollouts.js');
          drawRollouts(rollout ? [rollout] : [], 1.9e9);
        }"""
        page.tab.evaluate(draw, rollout)
        for words in ("version 1 to 2, group eu", "halted", "Stage 1: 2 of 20 devices failed.",
                      "Failed by group: eu: 2, no group: 1.", "<b>NaN</b>"):  # fmt: skip
            expect(card).to_contain_text(words)
        rows = card.locator("tbody tr").all_inner_texts()
        assert [row.split("\t") for row in rows] == [
            ["1 (now)", "10.0 %", "20", "3", "2"], ["2", "100.0 %", "180", "0", "0"],
        ]  # fmt: skip
        page.tab.evaluate(draw, None)
        expect(card).to_be_hidden()


# Many devices


def test_memory_and_tables_stay_bounded(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        result = page.tab.evaluate("""async () => {
          const module = await import('/dashboard/state.js');
          const { MOST_EVENTS, MOST_LOG, MOST_DEVICES } = module;
          const state = new module.State();
          const of_ = { adapter: 'a', version: 1 };
          for (let i = 1; i <= 20000; i += 1) {
            const plan = { ...of_, deadline_s: 1, bits: 1, budget_bits: 2 };
            const report = { ...of_, event: 'activated', received_bits: 1, elapsed_s: 1 };
            const kind = i % 2 ? 'plan' : 'report';
            const body = kind === 'plan' ? plan : report;
            state.add(kind, { ...body, sequence: i, at_s: i / 50, device: `pi-${i % 3}` });
            state.add(kind, { ...body, sequence: i, at_s: i / 50, device: `pi-${i % 3}` });
          }
          for (let i = 1; i <= 6000; i += 1) {
            state.add('plan', { ...of_, sequence: 20000 + i, at_s: 1, device: `x-${i}` });
          }
          const most = Math.max(...[...state.devices.values()].map((d) => d.events.length));
          const within = most <= MOST_EVENTS && state.log.length <= MOST_LOG
            && state.devices.size <= MOST_DEVICES && state.recent.length <= 10000;
          state.summarise({ sequence: 5, caller: 'x', sees_all: true, devices: [] });
          return [within, most, state.devices.size];
        }""")
        assert result == [True, 240, 0]


def test_events_are_cut_wherever_they_arrive(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        result = page.tab.evaluate("""async () => {
          const { Parser } = await import('/dashboard/api.js');
          const text = 'retry: 2000\\n\\n: nothing new\\n\\n'
            + 'id: 1\\nevent: plan\\ndata: {"a": "x: \\\\n\\\\n"}\\n\\n'
            + 'id: 2\\nevent: report\\ndata: {"b": 2}\\n\\n';
          const seen = new Set();
          for (let cut = 0; cut <= text.length; cut += 1) {
            const parser = new Parser();
            const events = [...parser.take(text.slice(0, cut)), ...parser.take(text.slice(cut))];
            seen.add(JSON.stringify(events));
          }
          return [...seen];
        }""")
        assert result == [
            '[{"kind":"plan","data":{"a":"x: \\n\\n"}},{"kind":"report","data":{"b":2}}]'
        ]


def test_hundreds_of_devices_are_drawn_together(browser: Any, tmp_path: Path) -> None:
    fill(tmp_path)
    with running(tmp_path) as server:
        desk = server.let_in("desk", "operator")
        plan = {"adapter": "sst2", "version": 1, "ladder": 0, "n_rungs": 3, "bits": 800,
                "loss": None, "accuracy": None, "n_blobs": 4, "n_held": 0, "n_held_rungs": 0,
                "link": {"throughput_bps": 1e5}, "deadline_s": 1.0, "budget_bits": 1e5}  # fmt: skip
        page = Page(browser, server.url)
        page.sign_in(desk)
        expect(page.tab.locator("#connection")).to_have_text("● live")
        page.tab.evaluate("""() => {
          window.draws = 0;
          window.began = performance.now();
          new MutationObserver(() => { window.draws += 1; }).observe(
            document.querySelector('#device-table tbody'), { childList: true });
        }""")
        with registry_of(server) as registry:
            for i in range(1000):
                registry.record(f"pi-{i % 250}", "plan", plan)
        expect(page.tab.locator("#tiles div").first).to_contain_text("250")
        expect(page.tab.locator("#device-table tbody tr")).to_have_count(200)
        expect(page.tab.locator("#devices-more")).to_contain_text("50 more devices")
        # What arrives within 200 ms is drawn together.
        draws, elapsed_ms = page.tab.evaluate("[window.draws, performance.now() - window.began]")
        assert 0 < draws <= elapsed_ms / 200 + 2
        page.tab.get_by_label("Filter").fill("pi-249")
        expect(page.row("pi-249")).to_be_visible()
        page.context.close()
