"""The Node.js client against the Python one: equal, bit for bit, over connections that break."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hosting import HostProcess, drive, reference

SOURCE = Path(__file__).parent.parent / "bridges" / "addons" / "node"
SEED, FRAMES = 5, 300
OFFLINE = "EAI_AGAIN|ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT|ENOTCACHED"
LIMIT = 240.0  # seconds

CHECK = """
import { createHash } from "node:crypto";
import { Client, WorldsimError } from "worldsim-client";

const client = await Client.connect(process.argv[2], { timeout: 500 });
const session = await client.open({ seed: 5, prompt: "a cart" });
const digest = (seen) => createHash("sha256").update(seen.frame.data).digest("hex");
const name = (error) => (error instanceof WorldsimError ? error.code : error.name);
const code = (promise) => promise.then(() => "none", name);
const said = { size: [session.last.frame.width, session.last.frame.height] };

const kept = await session.snapshot();
const twin = await session.fork();
const played = [digest(session.last)];
for (const one of [session, twin]) played.push(digest(await one.step({ action: 1 })));
played.push(digest(await twin.restore(kept)));
said.frames = played.map((one) => played.indexOf(one));
said.again = digest(await session.reset({ seed: 5, prompt: "a cart" }));
await session.prompt("a cart");
said.keys = (await session.step({ keys: "" })).step - 1;

said.unknown = await code(session.step({ action: 7 }));
said.aborted = await code(session.step({ action: 0 }, { signal: AbortSignal.abort() }));
said.large = await code(session.reset({ seed: 2 ** 53 }));

await session.run(100);
await session.input({ action: 0 });
const steps = [];
for await (const seen of session.frames({ credits: 4 })) {
  steps.push(seen.step);
  if (steps.length === 10) client.connection.reconnect(); // the watch goes on by itself
  if (steps.length === 20) break;
}
said.rising = steps.every((step, i) => i === 0 || step > steps[i - 1]);
await session.pause();
const paused = session.last.step;
said.steps = (await session.step({ action: 0 })).step - paused;
await Promise.all([session.close(), twin.close()]);
said.closed = await code(session.step({ action: 0 }));
client.close();

said.nobody = await code(Client.connect("tcp://127.0.0.1:1", { timeout: 50, patience: 200 }));
console.log(JSON.stringify(said));
"""


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    quick = {"npm_config_fetch_retries": "1", "npm_config_fetch_retry_mintimeout": "1000", "NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False, env=os.environ | quick
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = tmp_path_factory.mktemp("node") / "package"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    installed = run(["npm", "install", "--no-audit", "--no-fund", "--prefer-offline"], folder)
    if installed.returncode and (offline := re.search(OFFLINE, installed.stderr)):
        pytest.skip(f"npm reaches no registry: {offline[0]}")
    assert installed.returncode == 0, installed.stderr
    built = run(["npm", "run", "build"], folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_same_frames(package: Path, host: HostProcess) -> None:
    ran = run(["node", "dist/example/hashes.js", host.address, str(SEED), str(FRAMES)], package)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == reference(host.address, SEED, drive(FRAMES, SEED))
    resent = re.search(r"sent again: (\d+)", ran.stderr)
    assert resent and int(resent[1]) >= 2  # the first and the last of its drops cannot miss


def test_everything_else(package: Path, host: HostProcess) -> None:
    (package / "check.mjs").write_text(CHECK)
    ran = run(["node", "check.mjs", host.address], package)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "size": [40, 40],
        "frames": [0, 1, 1, 0],
        "again": reference(host.address, SEED, [])[0],
        "keys": 1,
        "unknown": "bad-action",
        "aborted": "AbortError",
        "large": "RangeError",
        "rising": True,
        "steps": 1,
        "closed": "no-session",
        "nobody": "no-answer",
    }
