"""The page in a real Chromium: keys, clock, links, going back, a second player, a phone.

The picture in the docs, of a host that serves car-racing: python tests/test_web_page.py docs/media/browser.png
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosting import HostProcess, hosting

pytest.importorskip("aiohttp", reason='the page needs aiohttp: pip install "worldsim-engine[serve]"')

from browser import Chromium, Page, needs_chromium, page_of  # noqa: E402

from worldsim.bridges.client import Connection  # noqa: E402


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("chromium") / "profile")
    yield browser
    browser.close()
    assert browser.problems == []  # no exception, and nothing that the content policy had to stop


@pytest.fixture(scope="module")
def address(host: HostProcess) -> Iterator[str]:
    with page_of(host.address) as address:
        yield address


def opened(chromium: Chromium, address: str, **device: Any) -> Page:
    """A page with a session that has its first frame."""
    page = chromium.open(address, **device)
    page.until("document.getElementById('canvas').dataset.step && document.getElementById('play').hidden === false")
    return page


def session_of(page: Page) -> str:
    """The token of the session that it plays."""
    return page.js("new URLSearchParams(location.hash.slice(1)).get('session')")


def link_of(page: Page, button: str) -> str:
    """The link that a button offers."""
    page.click(button)
    link = page.until("document.getElementById('link').value")
    page.js("document.getElementById('dialog').close(), document.getElementById('link').value = ''")
    return link


def reload(page: Page) -> None:
    """Load the page anew, and wait until the old one is gone, which may go on for some frames."""
    page.js("document.body.dataset.old = 'yes'")
    page.call("Page.reload")
    page.until("document.readyState === 'complete' && document.body && !document.body.dataset.old")


def pause(page: Page) -> int:
    """Pause, and wait until the last frame is shown, which may be on its way for long on a busy machine; its number."""
    page.click("pause")
    page.until("document.getElementById('pause').textContent === 'Run'")
    stood = -1
    while stood != page.step:
        stood = page.step
        time.sleep(0.7)
    return stood


@needs_chromium
def test_keys_play_and_pause_stops(chromium: Chromium, address: str, host: HostProcess):
    page = opened(chromium, address)
    first, start = page.pixels(), page.step
    with page.holding("right"):  # the first key starts the clock
        frames = page.record(8)
    with page.holding("left"):
        page.until("/^\\d+ ms$/.test(document.getElementById('latency').textContent)")
    assert page.step >= start + 8
    assert all((one != other).any() for one, other in zip(frames, frames[1:], strict=False))
    assert (page.pixels() != first).any()
    page.until("Number(document.getElementById('fps').textContent) > 5")
    page.until("/ms$/.test(document.getElementById('ping').textContent)")
    stood = pause(page)
    time.sleep(0.5)
    assert page.step == stood
    page.key("p", True)
    page.key("p", False)
    page.until(f"document.getElementById('canvas').dataset.step > {stood}")
    pause(page)
    connection = Connection(host.address)  # what is shown is what the host has, but for JPEG
    record = connection.call("render", session=session_of(page), encoding="raw")
    assert record.header["step"] == page.step
    assert np.abs(record.buffers["frame"].astype(int) - page.pixels()).mean() < 6
    connection.close()


@needs_chromium
def test_a_reload_goes_on_with_the_session(chromium: Chromium, address: str):
    page = opened(chromium, address)
    token = session_of(page)
    page.click("play")
    page.until("document.getElementById('canvas').dataset.step > 10")
    reload(page)
    page.until("document.getElementById('canvas').dataset.step > 15")
    assert session_of(page) == token
    stood = pause(page)
    reload(page)
    page.until("document.getElementById('canvas').dataset.step")
    time.sleep(0.5)
    assert page.step == stood  # what was paused stays so


@needs_chromium
def test_a_watcher_sees_the_same_and_cannot_steer(chromium: Chromium, address: str):
    page = opened(chromium, address)
    link = link_of(page, "share")
    assert "#watch=" in link and session_of(page) not in link
    watcher = chromium.open(link)
    watcher.until("document.getElementById('canvas').dataset.step")
    page.click("play")
    watcher.until("document.getElementById('canvas').dataset.step > 10")
    with watcher.holding("right"):
        time.sleep(0.2)
    assert watcher.text("error") == ""
    stood = pause(page)
    watcher.until(f"document.getElementById('canvas').dataset.step == {stood}")
    np.testing.assert_array_equal(watcher.pixels(), page.pixels())
    seen = "[...document.querySelectorAll('button, input')].filter((e) => e.checkVisibility()).length"
    assert watcher.js(seen) == 0


@needs_chromium
def test_a_prompt(chromium: Chromium, address: str, host: HostProcess):
    page = opened(chromium, address)
    assert page.js("[...document.getElementById('prompts').options].map((o) => o.value)") == ["a cart"]
    connection = Connection(host.address)
    for words in ("", "a cart"):
        page.js("document.getElementById('prompt').focus(), document.getElementById('prompt').select()")
        page.call("Input.insertText", text=words)
        page.key("enter", True)
        page.key("enter", False)
        page.until("document.activeElement.id === 'stage'")
        assert connection.call("render", session=session_of(page)).header["prompt"] == words
    connection.close()


@needs_chromium
def test_going_back(chromium: Chromium, address: str):
    page = opened(chromium, address)
    page.click("play")
    kept = f"JSON.parse(sessionStorage.getItem('snapshots {session_of(page)}') ?? '[]')"
    page.until(f"{kept}.length >= 3")
    first, before = page.js(f"{kept}[0].step"), page.step
    with page.holding("backspace"):
        page.until(f"document.getElementById('canvas').dataset.step == {first}")
        time.sleep(0.6)
        assert page.step == first < before  # it stands at the oldest for as long as the key is held
    page.until(f"document.getElementById('canvas').dataset.step > {first + 2}")  # and goes on from there
    assert page.text("error") == ""
    page.click("reset")
    page.until("document.getElementById('canvas').dataset.step < 20")
    pause(page)


@needs_chromium
def test_a_fork_is_a_session_of_its_own(chromium: Chromium, address: str):
    page = opened(chromium, address)
    page.click("play")
    page.until("document.getElementById('canvas').dataset.step > 12")
    stood = pause(page)
    twin = opened(chromium, link_of(page, "fork"))
    assert twin.step == stood and session_of(twin) != session_of(page)
    np.testing.assert_array_equal(twin.pixels(), page.pixels())
    twin.click("play")
    twin.until(f"document.getElementById('canvas').dataset.step > {stood + 3}")
    pause(twin)
    assert page.step == stood
    assert "#watch=" in link_of(twin, "share")


@needs_chromium
def test_a_second_player_steers_too(chromium: Chromium, address: str, host: HostProcess):
    page = opened(chromium, address)
    page.click("second")
    page.js("for (const box of document.querySelectorAll('#parts input')) box.checked = box.value === 'right'")
    page.click("make")
    link = page.until("document.getElementById('link').value")
    assert "#play=" in link
    page.js("document.getElementById('dialog').close()")
    player = chromium.open(link)
    player.until("document.getElementById('canvas').dataset.step")
    assert not player.js("document.getElementById('pause').checkVisibility()")
    page.click("play")
    player.until("document.getElementById('canvas').dataset.step > 10")
    with player.holding("right"):
        player.until("/ms$/.test(document.getElementById('latency').textContent)")
    assert player.text("error") == "" == page.text("error")
    pause(page)


@needs_chromium
def test_a_session_that_is_over(chromium: Chromium, address: str):
    page = chromium.open(f"{address}#session=long-gone-session")
    page.until("document.getElementById('play-text').textContent === 'Begin anew'")
    assert page.text("error") == "This session is over."
    page.click("play")
    page.until("document.getElementById('canvas').dataset.step")
    assert session_of(page) != "long-gone-session"
    watcher = chromium.open(f"{address}#watch=long-gone-session")
    watcher.until("document.getElementById('note').textContent === 'This session is over.'")
    assert not watcher.js("document.getElementById('play').checkVisibility()")


@needs_chromium
def test_a_link_asks_for_the_password_and_still_knows_where_it_leads(chromium: Chromium, host: HostProcess):
    other = Connection(host.address)
    session = other.call("open").header
    with page_of(host.address, "--token", "open s\u00e9same") as address:
        page = chromium.open(f"{address}#watch={session['watch']}")
        page.until("document.activeElement.id === 'token'")
        page.call("Input.insertText", text="open s\u00e9same")
        page.key("enter", True)
        page.until(f"document.getElementById('canvas').dataset.step == {session['step']}")
    other.call("close", session=session["session"])
    other.close()


@needs_chromium
def test_a_phone_has_keys_on_its_screen(chromium: Chromium, address: str):
    page = opened(chromium, address, width=360, height=740, mobile=True)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    reload(page)
    page.until(
        "document.getElementById('pad').checkVisibility() && document.querySelectorAll('[data-key=right]').length === 1"
    )
    assert page.js("document.documentElement.scrollWidth") <= 360
    x, y = page.js("(({ x, y }) => [x + 9, y + 9])(document.querySelector('[data-key=right]').getBoundingClientRect())")
    page.click("play")
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.until("document.querySelector('[data-key=right]').classList.contains('down')")
    page.until("document.getElementById('canvas').dataset.step > 12")
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.until("!document.querySelector('.down')")
    pause(page)


@needs_chromium
def test_the_gateway_comes_back(chromium: Chromium, host: HostProcess):
    with page_of(host.address) as address:
        page = opened(chromium, address)
        page.click("play")
        page.until("document.getElementById('canvas').dataset.step > 12")
    page.until("document.getElementById('state').dataset.state === 'away'")
    before = page.step
    with page_of(host.address, "--port", address.rstrip("/").rsplit(":", 1)[1]) as same:
        assert same == address
        page.until(f"document.getElementById('canvas').dataset.step > {before + 10}")
        assert page.text("error") == ""
        pause(page)


@needs_chromium
@pytest.mark.slow
def test_a_host_that_comes_back(chromium: Chromium, world_path: Path, tmp_path: Path):
    with hosting([world_path], tmp_path) as host, page_of(host.address, "--patience", "1") as address:
        page = opened(chromium, address)
        page.click("play")
        page.until("document.getElementById('canvas').dataset.step > 12")
        before = page.step
        host.kill()
        page.until("document.getElementById('state').dataset.state === 'away'")
        assert "come back" in page.text("state-text")
        again = HostProcess([world_path], tmp_path, host.port, "--resume")
        try:
            page.until(f"document.getElementById('canvas').dataset.step > {before + 10}")
            assert page.js("document.getElementById('state').dataset.state") == "online"
            assert page.text("error") == ""
        finally:
            again.kill()


@needs_chromium
@pytest.mark.slow
def test_the_road_turns_the_way_that_is_steered(chromium: Chromium, tmp_path: Path):
    """Car-racing from above: steering left turns the picture to the right about the car, and the other way round."""
    import torch

    from worldsim.evaluation.steering import orbit, turns

    with hosting(["car-racing"], tmp_path) as host, page_of(host.address) as address:
        page = opened(chromium, address)
        page.click("play")
        page.until("document.getElementById('canvas').dataset.step > 12")
        pause(page)
        other, session = Connection(host.address), session_of(page)  # for what a person cannot do: begin as we like
        step = other.call("reset", session=session, start=1, seed=1).header["step"]
        for _ in range(8):
            step = other.call("step", session=session, step=step, keys="up").header["step"]
        kept = other.call("snapshot", session=session).header["snapshot"]
        amounts = {}
        for key in ("left", "right"):
            other.call("restore", session=session, snapshot=kept)
            with page.holding(key):
                page.click("play")
                frames = torch.from_numpy(page.record(8))
            pause(page)
            amounts[key] = turns(frames[:-1], frames[1:], orbit())[0].tolist()
        other.close()
    assert np.mean(amounts["left"]) > 1 and np.mean(amounts["right"]) < -1, amounts


def take_picture(path: Path, folder: Path, host: str = "tcp://127.0.0.1:5570") -> None:
    """Play car-racing for a few frames, and write what the page looks like then."""
    with closing(Chromium(folder / "profile")) as browser, page_of(host) as address:
        page = opened(browser, address, width=1280, height=800)
        other, session = Connection(host), session_of(page)
        other.call("reset", session=session, start=1, seed=1)
        page.until("/ms$/.test(document.getElementById('ping').textContent)")
        page.click("play")
        page.record(1)
        with page.holding("up"):
            page.until("/ms$/.test(document.getElementById('latency').textContent)")
            page.record(4)
            page.picture(path)
        pause(page)
        other.call("close", session=session)
        other.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        take_picture(Path(sys.argv[1]), Path(folder), *sys.argv[2:])
