// Shows a hosted world in Unity and steers it with the arrow keys. Put it on any object, press play.
//
// A thread of its own talks to the host, whose clock draws the frames; Update takes the newest one and never waits.

using System;
using System.Collections.Generic;
using System.Threading;
using UnityEngine;
using Worldsim;

public class WorldsimPlayer : MonoBehaviour
{
    public string address = "tcp://127.0.0.1:5570";
    [Tooltip("May be empty where the host has one world.")]
    public string world = "";
    public int seed = 7;
    [Tooltip("Words for the frames from now on; may be changed while playing. Empty: the world's own.")]
    public string prompt = "";
    [Tooltip("Frames a second; 0 is the world's own pace.")]
    public float fps = 0;
    [Tooltip("Gets the picture as its main texture. If there is none, the picture fills the screen.")]
    public Renderer screen;

    static readonly KeyValuePair<KeyCode, string>[] Keys =
    {
        new KeyValuePair<KeyCode, string>(KeyCode.LeftArrow, "left"),
        new KeyValuePair<KeyCode, string>(KeyCode.RightArrow, "right"),
        new KeyValuePair<KeyCode, string>(KeyCode.UpArrow, "up"),
        new KeyValuePair<KeyCode, string>(KeyCode.DownArrow, "down"),
        new KeyValuePair<KeyCode, string>(KeyCode.Space, "space"),
    };

    /// <summary>The picture; null until there is one.</summary>
    public Texture2D Texture { get; private set; }

    /// <summary>The frame that the picture shows.</summary>
    public Frame Shown { get; private set; }

    Worker worker;
    byte[] flipped;

    void OnEnable()
    {
        worker = new Worker(address, world, seed, prompt, fps);
    }

    void OnDisable()
    {
        worker.Stop();
    }

    void OnDestroy()
    {
        Destroy(Texture);
    }

    void Update()
    {
        bool typing = GUIUtility.keyboardControl != 0;
        worker.Keys = typing ? "" : HeldKeys();
        worker.Prompt = typing ? worker.Prompt : prompt;  // whole words only
        if (!typing && Input.GetKeyDown(KeyCode.R))
            worker.Reset = true;
        Frame frame = worker.Newest;
        if (frame != null && frame != Shown)
            Show(frame);
    }

    void OnGUI()
    {
        if (screen == null && Texture != null)
            GUI.DrawTexture(new Rect(0, 0, Screen.width, Screen.height), Texture, ScaleMode.ScaleToFit);
        prompt = GUI.TextField(new Rect(10, Screen.height - 32, Screen.width - 20, 22), prompt, 1000);
        if (Event.current.type == EventType.MouseDown)  // a click beside the words ends the typing
            GUIUtility.keyboardControl = 0;
        if (worker.Trouble != null)
            GUI.Label(new Rect(10, 10, Screen.width - 20, 60), worker.Trouble);
    }

    void Show(Frame frame)
    {
        if (Texture == null || Texture.width != frame.Width || Texture.height != frame.Height)
        {
            Destroy(Texture);
            Texture = new Texture2D(frame.Width, frame.Height, TextureFormat.RGB24, false);
            Texture.filterMode = FilterMode.Point;
            flipped = new byte[frame.Pixels.Length];
            if (screen != null)
                screen.material.mainTexture = Texture;
        }
        int row = 3 * frame.Width;
        for (int y = 0; y < frame.Height; y++)  // Unity's textures begin at the bottom
            Buffer.BlockCopy(frame.Pixels, y * row, flipped, (frame.Height - 1 - y) * row, row);
        Texture.LoadRawTextureData(flipped);
        Texture.Apply(false);
        Shown = frame;
    }

    static string HeldKeys()
    {
        var held = new List<string>();
        foreach (KeyValuePair<KeyCode, string> key in Keys)
            if (Input.GetKey(key.Key))
                held.Add(key.Value);
        return string.Join("+", held.ToArray());
    }

    /// <summary>Plays on a thread of its own. The fields say what is wished for, and what there is to see.</summary>
    class Worker
    {
        public volatile string Keys = "";
        public volatile string Prompt;
        public volatile bool Reset;
        public volatile Frame Newest;
        public volatile string Trouble;

        readonly Client client;
        readonly string address;
        readonly string world;
        readonly float fps;
        long seed;

        public Worker(string address, string world, long seed, string prompt, float fps)
        {
            client = new Client(address, "worldsim Unity");
            this.address = address;
            this.world = world == "" ? null : world;
            this.seed = seed;
            this.fps = fps;
            Prompt = prompt;
            new Thread(Work) { IsBackground = true, Name = "worldsim" }.Start();
        }

        public void Stop()
        {
            client.Stop();
        }

        void Work()
        {
            while (true)
            {
                try
                {
                    Play();
                }
                catch (WorldsimException error)
                {
                    if (error.Code == "stopped")
                    {
                        client.Dispose();
                        return;
                    }
                    Trouble = error.Code + ": " + error.Message;
                    Debug.LogWarning(Trouble);
                    Thread.Sleep(1000);  // and begin again: the host may be back, or the words better
                }
            }
        }

        void Play()
        {
            string words = Prompt, held = "";
            Session session = client.Open(world, seed, Or(words));
            try
            {
                Newest = session.Frame;
                session.Watch();
                session.Run(fps > 0 ? fps : (double?)null);
                Trouble = null;
                while (true)
                {
                    if (Reset || Newest.Terminated || Newest.Truncated)
                    {
                        Reset = false;
                        Newest = session.Reset(++seed, Or(words));
                    }
                    string wish = Prompt, keys = Keys;
                    if (wish != words && wish != "")
                        Ask(() => session.SetPrompt(wish));
                    if (keys != held)
                        Ask(() => session.InputKeys(keys));
                    words = wish;
                    held = keys;
                    Newest = session.NextFrame(0.02) ?? Newest;  // not longer, for the sake of the keys
                }
            }
            finally
            {
                Close(session.Token);
            }
        }

        /// <summary>Ask for what this world may not know, which is no reason to end the game.</summary>
        void Ask(Action ask)
        {
            try
            {
                ask();
                Trouble = null;
            }
            catch (WorldsimException error) when (error.Code == "bad-action" || error.Code == "bad-prompt")
            {
                Trouble = error.Message;
            }
        }

        /// <summary>A stopped client asks nothing more; any other may close a session whose token it knows.</summary>
        void Close(string token)
        {
            try
            {
                using (var last = new Client(address, "worldsim Unity") { Patience = 1 })
                    last.Call("close", new Dictionary<string, object> { { "session", token } });
            }
            catch (WorldsimException)
            {
                // The host is gone, or will end the session with its lease.
            }
        }

        static string Or(string words)
        {
            return words == "" ? null : words;
        }
    }
}
