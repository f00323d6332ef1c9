"""The C# client has the same frames as the Python client; Unity's player shows them, in a Unity of twenty names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hosting import HostProcess, digest, drive, reference

from worldsim.bridges.client.connection import Connection

FOLDER = Path(__file__).parent.parent / "bridges" / "addons" / "unity"
GERMAN = {"LC_ALL": "de_DE.UTF-8"}  # where one and a half is 1,5
SEED = 11

pytestmark = pytest.mark.skipif(
    shutil.which("mcs") is None or shutil.which("mono") is None,
    reason="needs Mono's C# compiler and runtime: apt-get install mono-mcs mono-runtime",
)

UNITY = """
using System;
using System.Reflection;
using System.Security.Cryptography;
using System.Threading;

// As much of Unity as the player uses, without a screen.
namespace UnityEngine
{
    public class TooltipAttribute : Attribute { public TooltipAttribute(string text) { } }
    public class Object { public static void Destroy(Object what) { } }
    public class MonoBehaviour : Object { }
    public class Texture : Object { public int width; public int height; public FilterMode filterMode { get; set; } }
    public class Material : Object { public Texture mainTexture { get; set; } }
    public class Renderer : Object { public Material material = new Material(); }
    public enum TextureFormat { RGB24 }
    public enum FilterMode { Point }
    public enum ScaleMode { ScaleToFit }
    public enum EventType { MouseDown, Repaint }
    public enum KeyCode { LeftArrow, RightArrow, UpArrow, DownArrow, Space, R }
    public class Texture2D : Texture
    {
        public byte[] Data;
        public Texture2D(int width, int height, TextureFormat format, bool mipChain)
        {
            this.width = width;
            this.height = height;
        }
        public void LoadRawTextureData(byte[] data) { Data = (byte[])data.Clone(); }
        public void Apply(bool updateMipmaps) { }
    }
    public struct Rect { public Rect(float x, float y, float width, float height) { } }
    public static class Screen { public static int width = 640; public static int height = 480; }
    public class Event { public static Event current = new Event(); public EventType type = EventType.Repaint; }
    public static class GUIUtility { public static int keyboardControl; }
    public static class GUI
    {
        public static void DrawTexture(Rect at, Texture what, ScaleMode mode) { }
        public static string TextField(Rect at, string text, int maxLength) { return text; }
        public static void Label(Rect at, string text) { }
    }
    public static class Input
    {
        public static bool right;
        public static bool GetKey(KeyCode key) { return right && key == KeyCode.RightArrow; }
        public static bool GetKeyDown(KeyCode key) { return false; }
    }
    public static class Debug { public static void LogWarning(object what) { Console.Error.WriteLine(what); } }
}

// As Unity calls a player: with nothing held until there were ten pictures, then with the right arrow for ten more.
static class Loop
{
    static void Main(string[] args)
    {
        var screen = new UnityEngine.Renderer();
        var player = new WorldsimPlayer { address = args[0], seed = int.Parse(args[1]), prompt = "a cart" };
        player.screen = screen;
        Action<string> call = name => typeof(WorldsimPlayer)
            .GetMethod(name, BindingFlags.Instance | BindingFlags.NonPublic).Invoke(player, null);
        call("OnEnable");
        Worldsim.Frame shown = null;
        for (int pictures = 0; pictures < 20; Thread.Sleep(1))
        {
            call("Update");
            call("OnGUI");
            if (player.Shown == shown)
                continue;
            shown = player.Shown;
            byte[] data = ((UnityEngine.Texture2D)screen.material.mainTexture).Data;
            using (SHA256 sha = SHA256.Create())
                Console.WriteLine(shown.Step + " " + BitConverter.ToString(sha.ComputeHash(data)).Replace("-", ""));
            UnityEngine.Input.right = ++pictures >= 10;
        }
        call("OnDisable");
        Thread.Sleep(300);  // the session is closed in the background
    }
}
"""


def compiled(folder: Path, *sources: Path) -> Path:
    """A program out of C# files, none of which may bring a warning."""
    program = folder / "program.exe"
    command = ["mcs", "-warnaserror+", "-langversion:6", f"-out:{program}", *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return program


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Its output; it must end well."""
    command = ["mono", str(program), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | GERMAN)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("unity"), FOLDER / "Worldsim.cs", FOLDER / "Example.cs")


def test_same_frames_as_python_though_the_connection_breaks_twice(example: Path, host: HostProcess) -> None:
    done = run(example, "drive", host.address, SEED, 300)
    assert done.stdout.split() == reference(host.address, SEED, drive(300, SEED))
    assert "connections: 3" in done.stderr  # one request and one reply were lost


def test_every_other_verb(example: Path, host: HostProcess) -> None:
    assert run(example, "tour", host.address).stdout.endswith("all well\n")


def test_what_is_refused_is_said(example: Path, host: HostProcess) -> None:
    done = subprocess.run(["mono", str(example), "drive", host.address, "-1", "3"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("bad-field: 'seed' is -1")


def test_player_shows_the_frames_the_right_way_up_and_sends_keys(tmp_path: Path, host: HostProcess) -> None:
    (tmp_path / "Unity.cs").write_text(UNITY)
    sources = (FOLDER / "Worldsim.cs", FOLDER / "WorldsimPlayer.cs", tmp_path / "Unity.cs")
    lines = run(compiled(tmp_path, *sources), host.address, SEED).stdout.splitlines()
    pictures = [(int(step), sha.lower()) for step, sha in map(str.split, lines)]
    rest = upside_down(host.address, SEED, pictures[-1][0])
    assert len(pictures) == 20 and len(set(pictures)) == 20
    assert all(rest[step] == sha for step, sha in pictures[:10])  # nothing held
    assert rest[pictures[-1][0]] != pictures[-1][1]  # "right" held


def upside_down(address: str, seed: int, last: int) -> dict[int, str]:
    """SHA-256 by step of a session's frames, bottom row first, with no key held."""
    connection = Connection(address)
    try:
        message = connection.call("open", seed=seed, prompt="a cart")
        session, hashes = message.header["session"], {}
        while True:
            step = message.header["step"]
            hashes[step] = digest(connection.frame(message.buffers["frame"])[::-1])
            if step == last:
                return hashes
            message = connection.call("step", session=session, step=step, keys="")
    finally:
        connection.close()
