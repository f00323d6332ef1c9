"""The LÖVE client against the Python one: equal, bit for bit, over connections that break."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hosting import HostProcess, drive, reference

SOURCE = Path(__file__).parent.parent / "bridges" / "addons" / "love"
SEED, FRAMES = 5, 300
LIMIT = 240.0  # seconds

CONF = """
function love.conf(t)
  for _, name in ipairs { "window", "graphics", "font", "audio", "joystick" } do t.modules[name] = false end
end
"""

CHECK = r"""
local worldsim = require "worldsim"

local texts = { 'a "b"\\\n\t\1', "\195\182\226\130\172\240\159\152\128", "\\ud83d\\ude00", "" }
for _, text in ipairs(texts) do assert(worldsim.decode(worldsim.encode { text = text }).text == text) end
assert(worldsim.decode [["\u00f6\u20ac\ud83d\ude00"]] == texts[2])
assert(worldsim.decode [[ {"a" : [ 1, -2.5e3, [ ], {}, null, true ]} ]].a[2] == -2500)
assert(worldsim.encode { 1, 0.1, -3, 2 ^ 52 } == "[1,0.10000000000000001,-3,4503599627370496]")
assert(not pcall(worldsim.encode, 2 ^ 53) and not pcall(worldsim.encode, 0 / 0) and not pcall(worldsim.decode, "[1"))

function love.load(words)
  local client = worldsim.connect(words[1], { timeout = 0.5 })
  local function finish(request)
    local reply, problem = client:finish(request)
    return reply or error(problem.code .. ": " .. problem.message)
  end
  local function fails(request) return select(2, client:finish(request)).code end

  local session = finish(client:open { seed = 5, prompt = "a cart" })
  local first = session.frame.data
  local kept = finish(session:snapshot()).snapshot
  local twin = finish(session:fork())
  finish(session:step { action = 1 })
  finish(twin:step { action = 1 })
  assert(session.frame.data == twin.frame.data and session.frame.data ~= first)
  finish(twin:restore(kept))
  assert(twin.frame.data == first)
  finish(session:reset { seed = 5, prompt = "a cart" })
  assert(session.frame.data == first)
  finish(session:say "a cart")
  finish(session:step { keys = "" })
  assert(session.step_count == 2)

  local pixels = session:image_data()
  local r, g, b, a = pixels:getPixel(pixels:getWidth() - 1, 1)
  local at = 3 * (2 * pixels:getWidth() - 1)
  assert(session.frame.data:byte(at + 1) == r * 255 and session.frame.data:byte(at + 2) == g * 255)
  assert(session.frame.data:byte(at + 3) == b * 255 and a == 1)

  assert(fails(session:step { action = 7 }) == "bad-action")

  local steps = {}
  finish(session:run(100))
  finish(session:input { action = 0 })
  session:watch(function(seen) steps[#steps + 1] = seen.step_count end, 4)
  while #steps < 10 do client:update(0.05) end
  client:reconnect() -- the watch goes on by itself
  while #steps < 20 do client:update(0.05) end
  for i = 2, #steps do assert(steps[i] > steps[i - 1]) end
  finish(session:unwatch())
  finish(session:pause())
  finish(session:step { action = 0 })

  finish(twin:close())
  finish(session:close())
  assert(fails(session:step { action = 0 }) == "no-session")
  client:close()
  local nobody = worldsim.connect("tcp://127.0.0.1:1", { timeout = 0.05, patience = 0.2 })
  assert(select(2, nobody:finish(nobody:open {})).code == "no-answer")
  nobody:close()
  print("all is well")
  love.event.quit()
end
"""


def love(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run LÖVE without a screen."""
    if shutil.which("love") is None:
        pytest.skip("love is not installed")
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = ["love", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, env=env)


def test_same_frames(host: HostProcess) -> None:
    ran = love(SOURCE, "--hashes", host.address, str(SEED), str(FRAMES))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.split() == reference(host.address, SEED, drive(FRAMES, SEED))
    resent = re.search(r"sent again: (\d+)", ran.stderr)
    assert resent and int(resent[1]) >= 2  # the first and the last of its drops cannot miss


def test_everything_else(host: HostProcess, tmp_path: Path) -> None:
    shutil.copy(SOURCE / "worldsim.lua", tmp_path)
    (tmp_path / "conf.lua").write_text(CONF)
    (tmp_path / "main.lua").write_text(CHECK)
    ran = love(tmp_path, host.address)
    assert ran.returncode == 0 and ran.stdout == "all is well\n", ran.stdout + ran.stderr
