// A client of worldsim hosts in one file, for Unity, Mono, .NET and Godot's C#. It needs nothing else.
//
//     using (var client = new Worldsim.Client("tcp://127.0.0.1:5570"))
//     {
//         Worldsim.Session session = client.Open(seed: 7, prompt: "a desert road");
//         Worldsim.Frame frame = session.StepKeys("left+up");  // frame.Pixels: RGB, row by row from the top
//         session.Close();
//     }
//
// The protocol is told in worldsim's docs/protocol.md. C# 6, .NET Framework 4 or .NET Standard 2.0.

using System;
using System.Collections;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Threading;

namespace Worldsim
{
    /// <summary>What the host refuses, or why it cannot be reached.</summary>
    public class WorldsimException : Exception
    {
        /// <summary>One of the protocol's, or "no-host" where nobody answers, or "stopped" after Client.Stop.</summary>
        public readonly string Code;

        /// <summary>What else the host says of it, such as the `step` of out-of-order.</summary>
        public readonly Dictionary<string, object> Details;

        public WorldsimException(string code, string message, Dictionary<string, object> details = null) : base(message)
        {
            Code = code;
            Details = details ?? new Dictionary<string, object>();
        }
    }

    /// <summary>A frame, and what the host says of it.</summary>
    public class Frame
    {
        public readonly int Width;
        public readonly int Height;

        /// <summary>RGB, one byte each, row by row from the top.</summary>
        public readonly byte[] Pixels;

        /// <summary>How many frames the session had with this one.</summary>
        public readonly long Step;

        public readonly string Prompt;
        public readonly double Reward;

        /// <summary>Learned probability that the episode ended with it.</summary>
        public readonly double Ended;

        public readonly bool Terminated;
        public readonly bool Truncated;

        /// <summary>Frames before this one that were drawn and not sent, when watching.</summary>
        public readonly long Dropped;

        internal Frame(Message message)
        {
            var described = message.Get<List<object>>("buffers");
            var about = described != null && described.Count == 1 ? described[0] as Dictionary<string, object> : null;
            var shape = about != null && about.ContainsKey("shape") ? about["shape"] as List<object> : null;
            if (shape == null || shape.Count != 3 || message.Parts.Count != 1)
                throw new WorldsimException("bad-message", "the host's reply has no raw frame.");
            Height = Convert.ToInt32(shape[0], CultureInfo.InvariantCulture);
            Width = Convert.ToInt32(shape[1], CultureInfo.InvariantCulture);
            Pixels = message.Parts[0];
            if (Pixels.Length != 3L * Width * Height)
                throw new WorldsimException("bad-message", "the host's frame has another size than it says.");
            Step = message.Integer("step");
            Prompt = message.Get<string>("prompt");
            Reward = message.Number("reward");
            Ended = message.Number("ended");
            Terminated = message.Get<object>("terminated") as bool? ?? false;
            Truncated = message.Get<object>("truncated") as bool? ?? false;
            Dropped = message.Integer("dropped");
        }
    }

    /// <summary>A message of the host: the header, and the parts after it.</summary>
    public class Message
    {
        public readonly Dictionary<string, object> Header;
        public readonly List<byte[]> Parts;

        internal Message(Dictionary<string, object> header, List<byte[]> parts)
        {
            Header = header;
            Parts = parts;
        }

        /// <summary>A field, or null if it is missing or of another type.</summary>
        public T Get<T>(string name) where T : class
        {
            object value;
            return Header.TryGetValue(name, out value) ? value as T : null;
        }

        /// <summary>A field that is a number, or 0.</summary>
        public double Number(string name)
        {
            object value = Get<object>(name);
            return value is double ? (double)value : value is long ? (long)value : 0;
        }

        /// <summary>A field that is an integer, or 0.</summary>
        public long Integer(string name)
        {
            return Get<object>(name) as long? ?? 0;
        }
    }

    /// <summary>A world being played. It lives with the host until Close, or until its lease ends.</summary>
    public class Session
    {
        const int Credits = 32;  // frames that may be under way to us when watching

        /// <summary>Who knows it may do everything; Client.Attach comes back to a session with it.</summary>
        public readonly string Token;

        /// <summary>Who knows it may watch; null for a session that was attached to.</summary>
        public readonly string WatchToken;

        public readonly string World;

        /// <summary>How many frames it has, as far as lock-step goes; watched frames have their own.</summary>
        public long StepCount { get; private set; }

        /// <summary>In force for the next frame.</summary>
        public string Prompt { get; private set; }

        /// <summary>The last frame that came as an answer.</summary>
        public Frame Frame { get; private set; }

        internal int Left;  // credits
        readonly Queue<Frame> waiting = new Queue<Frame>();
        readonly Client client;

        internal Session(Client client, Message message, string token)
        {
            this.client = client;
            Token = token;
            WatchToken = message.Get<string>("watch");
            World = message.Get<string>("world");
            Take(message, true);
        }

        /// <summary>The next frame under an action: a number, an array or list, or a dictionary.</summary>
        public Frame Step(object action)
        {
            return Take(Call("step", "step", StepCount, "action", action), true);
        }

        /// <summary>The next frame under the keys held, such as "left+up"; "" holds none.</summary>
        public Frame StepKeys(string keys)
        {
            return Take(Call("step", "step", StepCount, "keys", keys), true);
        }

        /// <summary>Begin anew.</summary>
        public Frame Reset(long? seed = null, string prompt = null, long? start = null, double? guidance = null)
        {
            return Jump(Call("reset", "seed", seed, "prompt", prompt, "start", start, "guidance", guidance));
        }

        /// <summary>Condition the frames from now on.</summary>
        public void SetPrompt(string words)
        {
            Take(Call("prompt", "prompt", words), false);
        }

        /// <summary>Keep the session as it is now, with the host; gives a token for Restore.</summary>
        public string Snapshot()
        {
            return Call("snapshot").Get<string>("snapshot");
        }

        /// <summary>Go back to a snapshot.</summary>
        public Frame Restore(string snapshot)
        {
            return Jump(Call("restore", "snapshot", snapshot));
        }

        /// <summary>Open a twin: under the same actions it draws the same frames, unless its seed is another.</summary>
        public Session Fork(long? seed = null)
        {
            Message message = Call("fork", "seed", seed);
            return new Session(client, message, message.Get<string>("session"));
        }

        /// <summary>End it.</summary>
        public void Close()
        {
            client.Watched.Remove(Token);
            Call("close");
        }

        /// <summary>Start the clock: the host draws frames at a pace, the world's own if not given.</summary>
        public void Run(double? fps = null)
        {
            Take(Call("run", "fps", fps), false);
        }

        /// <summary>Stop the clock.</summary>
        public void Pause()
        {
            Take(Call("pause"), false);
        }

        /// <summary>Hold an action until the next one, while the clock runs.</summary>
        public void Input(object action)
        {
            Call("input", "action", action);
        }

        /// <summary>Hold keys until the next ones, while the clock runs.</summary>
        public void InputKeys(string keys)
        {
            Call("input", "keys", keys);
        }

        /// <summary>Have every frame sent to us; NextFrame gives them.</summary>
        public void Watch()
        {
            client.Watched[Token] = this;
            TopUp();
        }

        /// <summary>No more of that.</summary>
        public void Unwatch()
        {
            client.Watched.Remove(Token);
            Call("unwatch");
            Left = 0;
            waiting.Clear();
        }

        /// <summary>The next watched frame; null if none comes within some seconds.</summary>
        public Frame NextFrame(double seconds)
        {
            double end = Client.Now + seconds;
            while (true)
            {
                TopUp();
                if (waiting.Count > 0)
                    return waiting.Dequeue();
                if (!client.Listen(Math.Min(end, Client.Now + client.Timeout)))
                {
                    if (Client.Now >= end)
                        return null;
                    Call("watch", "credits", 0);  // nothing for long: are we still connected? It renews the lease, too
                }
            }
        }

        internal void Push(Message message)
        {
            Left = (int)message.Integer("credits");
            waiting.Enqueue(new Frame(message));
        }

        void TopUp()
        {
            if (!client.Watched.ContainsKey(Token) || Left > Credits / 2)
                return;
            int more = Credits - Left;
            Left = 0;
            Call("watch", "credits", more);
            Left = Credits;  // or a little less: the next frame says
        }

        Message Call(string verb, params object[] fields)
        {
            var named = new Dictionary<string, object> { { "session", Token } };
            for (int i = 0; i < fields.Length; i += 2)
                named[(string)fields[i]] = fields[i + 1];
            return client.Call(verb, named);
        }

        Frame Jump(Message message)
        {
            waiting.Clear();  // frames of before
            return Take(message, true);
        }

        Frame Take(Message message, bool drawn)
        {
            StepCount = message.Integer("step");
            Prompt = message.Get<string>("prompt") ?? Prompt;
            return drawn ? Frame = new Frame(message) : Frame;
        }
    }

    /// <summary>Talks to a host. For one thread, but for Stop.</summary>
    public class Client : IDisposable
    {
        const int MostBytes = 1 << 28;  // of one part; beyond, it is not a worldsim host
        static readonly Stopwatch Clock = Stopwatch.StartNew();

        /// <summary>Seconds without a reply after which a request is sent again, over a new connection.</summary>
        public double Timeout = 5;

        /// <summary>Seconds after which it is given up: as long as a host may need to be started again.</summary>
        public double Patience = 60;

        /// <summary>What the host said of itself and its worlds.</summary>
        public Dictionary<string, object> Hello { get; private set; }

        /// <summary>Connections that were made so far.</summary>
        public int Connections { get; private set; }

        internal readonly Dictionary<string, Session> Watched = new Dictionary<string, Session>();
        readonly Uri address;
        readonly string name;
        readonly string token = NewToken();
        long ids;
        TcpClient tcp;
        bool greeted;
        volatile bool stopped;

        internal static double Now
        {
            get { return Clock.Elapsed.TotalSeconds; }
        }

        /// <summary>Nothing is sent yet; the first call connects.</summary>
        public Client(string address = "tcp://127.0.0.1:5570", string name = "worldsim C#")
        {
            if (!Uri.TryCreate(address, UriKind.Absolute, out this.address) || this.address.Scheme != "tcp"
                || this.address.Port <= 0)
                throw new ArgumentException("'" + address + "' is no address; try tcp://127.0.0.1:5570");
            this.name = name;
        }

        /// <summary>Connect and say hello; Hello tells of the worlds.</summary>
        public void Connect()
        {
            Greet(Now + Patience);
        }

        /// <summary>Begin a session. The world may be left out where there is one.</summary>
        public Session Open(string world = null, long? seed = null, string prompt = null, long? start = null,
                            double? guidance = null, string snapshot = null)
        {
            Message message = Call("open", new Dictionary<string, object>
            {
                { "world", world }, { "seed", seed }, { "prompt", prompt }, { "start", start },
                { "guidance", guidance }, { "snapshot", snapshot },
            });
            return new Session(this, message, message.Get<string>("session"));
        }

        /// <summary>A session that is there, by one of its tokens: to go on, to play second, to watch.</summary>
        public Session Attach(string token)
        {
            return new Session(this, Call("render", new Dictionary<string, object> { { "session", token } }), token);
        }

        /// <summary>
        /// Ask anything and wait for the answer. A request whose answer is lost is sent again; the host does nothing
        /// twice. Fields that are null are left out.
        /// </summary>
        public Message Call(string verb, Dictionary<string, object> fields = null)
        {
            return Ask(verb, fields, Now + Patience, true);
        }

        /// <summary>Make whatever waits give up, for good. Any thread may call this.</summary>
        public void Stop()
        {
            stopped = true;
        }

        /// <summary>Let go of the connection; the next call makes a new one.</summary>
        public void Disconnect()
        {
            if (tcp != null)
                tcp.Close();
            tcp = null;
            greeted = false;
        }

        /// <summary>Let go of the connection for good; sessions live on until their leases end.</summary>
        public void Dispose()
        {
            Stop();
            Disconnect();
        }

        /// <summary>Take in the next message if one comes in time; false if none does.</summary>
        internal bool Listen(double end)
        {
            if (tcp == null)
                return false;
            try
            {
                return Receive(end) != null;
            }
            catch (Exception lost) when (lost is IOException || lost is SocketException)
            {
                Lost();
                return false;
            }
        }

        /// <summary>Put a request on the wire. Virtual for tests of what happens when that fails.</summary>
        protected virtual void Send(byte[] header)
        {
            var wire = new MemoryStream();
            wire.WriteByte((byte)(header.Length > 255 ? 2 : 0));  // flags: whether the length has 8 bytes
            for (int shift = header.Length > 255 ? 56 : 0; shift >= 0; shift -= 8)
                wire.WriteByte((byte)((long)header.Length >> shift));
            wire.Write(header, 0, header.Length);
            Write(wire.ToArray());
        }

        Message Ask(string verb, Dictionary<string, object> fields, double end, bool greet)
        {
            long id = ++ids;
            var header = new Dictionary<string, object> { { "v", 1 }, { "id", id }, { "verb", verb } };
            if (fields != null)
                foreach (KeyValuePair<string, object> field in fields)
                    if (field.Value != null)
                        header[field.Key] = field.Value;
            byte[] request = Encoding.UTF8.GetBytes(Json.Write(header));
            while (true)
            {
                WorldsimException wrong;
                try
                {
                    Reach(end);
                    if (greet && !greeted)
                        Greet(end);
                    Send(request);
                    Message reply = Answer(id, Math.Min(end, Now + Timeout));
                    var error = reply.Get<Dictionary<string, object>>("error");
                    if (error == null)
                        return reply;
                    wrong = new WorldsimException(error["code"] as string, error["message"] as string, error);
                    if (wrong.Code == "hello-first")
                        greeted = false;
                    else if (wrong.Code == "too-fast" || wrong.Code == "stopping")
                        Rest(error.ContainsKey("wait") ? Convert.ToDouble(error["wait"]) : 0.1, end);
                    else
                        throw wrong;
                }
                catch (Exception lost) when (lost is IOException || lost is SocketException)
                {
                    // What was sent may have been done or not: the same request finds out.
                    Lost();
                    wrong = new WorldsimException("no-host", "the host at " + address.Authority
                        + " has not answered for " + Patience.ToString(CultureInfo.InvariantCulture) + " s ("
                        + lost.Message + "). Is it running (worldsim serve)? Give it more Patience, "
                        + "or start it again with --resume.");
                    Rest(0.05, end);
                }
                if (Now >= end)
                    throw wrong;
            }
        }

        void Greet(double end)
        {
            var fields = new Dictionary<string, object> { { "client", token }, { "name", name } };
            Hello = Ask("hello", fields, end, false).Header;
            greeted = true;
            foreach (Session session in Watched.Values)
                session.Left = 0;  // the host knows watchers by their connection, and this is a new one
        }

        Message Answer(long id, double end)
        {
            while (true)
            {
                Message message = Receive(end);
                if (message == null)
                    throw new IOException("no reply in time");
                if (message.Get<string>("verb") == "frame" || message.Get<string>("verb") == "bye")
                    continue;
                long? its = message.Get<object>("id") as long?;
                if (its == id || its == null)  // null: what we said was nothing that has an id
                    return message;
                // Another id: an answer to what was asked before, and came late.
            }
        }

        // The wire: ZMTP 3.0, mechanism NULL.

        void Reach(double end)
        {
            if (tcp != null)
                return;
            CheckStopped();
            double limit = Math.Min(end, Now + Timeout);
            IPAddress[] found = Dns.GetHostAddresses(address.DnsSafeHost);
            IPAddress ip = Array.Find(found, one => one.AddressFamily == AddressFamily.InterNetwork) ?? found[0];
            tcp = new TcpClient(ip.AddressFamily) { NoDelay = true };
            IAsyncResult connecting = tcp.BeginConnect(ip, address.Port, null, null);
            if (!connecting.AsyncWaitHandle.WaitOne(Milliseconds(limit)))
                throw new IOException("no connection in time");
            tcp.EndConnect(connecting);
            Connections++;
            var greeting = new byte[64];
            new byte[] { 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0, 0x4e, 0x55, 0x4c, 0x4c }.CopyTo(greeting, 0);
            Write(greeting);
            byte[] theirs = Read(64, limit);
            if (theirs[0] != 0xff || theirs[10] < 3 || Encoding.ASCII.GetString(theirs, 12, 5) != "NULL\0")
            {
                Disconnect();
                throw new WorldsimException("no-host", address.Authority + " is no host that this client can talk to: "
                    + "no ZeroMQ there, or it has CURVE keys (go through a tunnel to its loopback address then).");
            }
            Write(Encoding.ASCII.GetBytes("\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06" + "DEALER"));
            int flags;
            byte[] ready = ReadPart(limit, out flags);
            if (flags != 4 || ready.Length < 6 || Encoding.ASCII.GetString(ready, 1, 5) != "READY")
                throw new IOException("the host refuses the connection");
        }

        Message Receive(double end)
        {
            while (!tcp.Client.Poll(Math.Min(50, Milliseconds(end)) * 1000, SelectMode.SelectRead))
            {
                CheckStopped();
                if (Now >= end)
                    return null;
            }
            double limit = Now + Timeout;  // it has begun; the rest must come soon
            var parts = new List<byte[]>();
            int flags;
            do
            {
                byte[] part = ReadPart(limit, out flags);
                if ((flags & 4) == 0)
                    parts.Add(part);
            }
            while ((flags & 1) != 0 || parts.Count == 0);
            Dictionary<string, object> header;
            try
            {
                header = Json.Read(Encoding.UTF8.GetString(parts[0])) as Dictionary<string, object>;
            }
            catch (FormatException error)
            {
                throw new IOException(error.Message, error);
            }
            if (header == null)
                throw new IOException("the header is no JSON object");
            parts.RemoveAt(0);
            var message = new Message(header, parts);
            Session session;
            string pushed = message.Get<string>("verb") == "frame" ? message.Get<string>("session") ?? "" : "";
            if (Watched.TryGetValue(pushed, out session))
                session.Push(message);
            return message;
        }

        byte[] ReadPart(double limit, out int flags)
        {
            flags = Read(1, limit)[0];
            long length = 0;
            foreach (byte b in Read((flags & 2) != 0 ? 8 : 1, limit))
                length = length << 8 | b;
            if (length < 0 || length > MostBytes)
                throw new IOException("a part of " + length + " bytes");
            return Read((int)length, limit);
        }

        byte[] Read(int count, double limit)
        {
            var bytes = new byte[count];
            for (int done = 0; done < count;)
            {
                CheckStopped();
                tcp.ReceiveTimeout = Math.Max(1, Milliseconds(limit));  // 0 would be for ever
                int more = tcp.GetStream().Read(bytes, done, count - done);
                if (more == 0)
                    throw new IOException("the host has closed the connection");
                done += more;
            }
            return bytes;
        }

        void Write(byte[] bytes)
        {
            tcp.SendTimeout = Math.Max(1, (int)(1000 * Timeout));
            tcp.GetStream().Write(bytes, 0, bytes.Length);
        }

        void Lost()
        {
            Disconnect();
            foreach (Session session in Watched.Values)
                session.Left = 0;
        }

        void Rest(double seconds, double end)
        {
            for (end = Math.Min(end, Now + seconds); Now < end; Thread.Sleep(Math.Min(50, Milliseconds(end) + 1)))
                CheckStopped();
        }

        void CheckStopped()
        {
            if (stopped)
                throw new WorldsimException("stopped", "the client was stopped.");
        }

        static int Milliseconds(double end)
        {
            return (int)Math.Min(int.MaxValue / 1000, Math.Max(0, 1000 * (end - Now)));
        }

        static string NewToken()
        {
            var bytes = new byte[16];
            using (RandomNumberGenerator random = RandomNumberGenerator.Create())
                random.GetBytes(bytes);
            return BitConverter.ToString(bytes).Replace("-", "").ToLowerInvariant();
        }
    }

    /// <summary>
    /// As much of JSON as the protocol needs. Objects are Dictionary&lt;string, object&gt;, arrays List&lt;object&gt;,
    /// numbers long or double.
    /// </summary>
    public static class Json
    {
        const int MostDepth = 64;  // a stack overflow would end the whole editor

        /// <summary>A value as JSON.</summary>
        public static string Write(object value)
        {
            var text = new StringBuilder();
            Write(text, value);
            return text.ToString();
        }

        /// <summary>A value out of JSON; a FormatException says what is wrong with it.</summary>
        public static object Read(string text)
        {
            int at = 0;
            object value = Value(text, ref at, 0);
            Skip(text, ref at);
            if (at < text.Length)
                throw Wrong(text, at);
            return value;
        }

        static void Write(StringBuilder text, object value)
        {
            if (value == null)
                text.Append("null");
            else if (value is string)
                WriteText(text, (string)value);
            else if (value is bool)
                text.Append((bool)value ? "true" : "false");
            else if (value is float || value is double)
            {
                double number = Convert.ToDouble(value, CultureInfo.InvariantCulture);
                if (double.IsNaN(number) || double.IsInfinity(number))
                    throw new ArgumentException("an action or a field is NaN or infinite; JSON has no such number.");
                text.Append(((IFormattable)value).ToString("R", CultureInfo.InvariantCulture));
            }
            else if (value is IDictionary)
            {
                char before = '{';
                foreach (DictionaryEntry entry in (IDictionary)value)
                {
                    text.Append(before);
                    WriteText(text, (string)entry.Key);
                    text.Append(':');
                    Write(text, entry.Value);
                    before = ',';
                }
                text.Append(before == '{' ? "{}" : "}");
            }
            else if (value is IEnumerable)
            {
                char before = '[';
                foreach (object one in (IEnumerable)value)
                {
                    text.Append(before);
                    Write(text, one);
                    before = ',';
                }
                text.Append(before == '[' ? "[]" : "]");
            }
            else if (value is IFormattable && value.GetType().IsPrimitive)
                text.Append(((IFormattable)value).ToString(null, CultureInfo.InvariantCulture));
            else
                throw new ArgumentException("a " + value.GetType() + " is nothing that JSON has.");
        }

        static void WriteText(StringBuilder text, string value)
        {
            text.Append('"');
            foreach (char c in value)
                if (c == '"' || c == '\\')
                    text.Append('\\').Append(c);
                else if (c < ' ')
                    text.Append("\\u").Append(((int)c).ToString("x4", CultureInfo.InvariantCulture));
                else
                    text.Append(c);
            text.Append('"');
        }

        static object Value(string text, ref int at, int depth)
        {
            Skip(text, ref at);
            if (at >= text.Length || depth > MostDepth)
                throw Wrong(text, at);
            switch (text[at])
            {
                case '{':
                    var members = new Dictionary<string, object>();
                    for (bool more = Begins(text, ref at, '}'); more; more = GoesOn(text, ref at, '}'))
                    {
                        Skip(text, ref at);
                        string name = Text(text, ref at);
                        Skip(text, ref at);
                        Expect(text, ref at, ":");
                        members[name] = Value(text, ref at, depth + 1);
                    }
                    return members;
                case '[':
                    var entries = new List<object>();
                    for (bool more = Begins(text, ref at, ']'); more; more = GoesOn(text, ref at, ']'))
                        entries.Add(Value(text, ref at, depth + 1));
                    return entries;
                case '"':
                    return Text(text, ref at);
                case 't':
                    Expect(text, ref at, "true");
                    return true;
                case 'f':
                    Expect(text, ref at, "false");
                    return false;
                case 'n':
                    Expect(text, ref at, "null");
                    return null;
                default:
                    return Number(text, ref at);
            }
        }

        static object Number(string text, ref int at)
        {
            int begin = at;
            while (at < text.Length && "+-.0123456789eE".IndexOf(text[at]) >= 0)
                at++;
            string digits = text.Substring(begin, at - begin);
            long whole;
            if (long.TryParse(digits, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out whole))
                return whole;
            double number;
            if (double.TryParse(digits, NumberStyles.Float, CultureInfo.InvariantCulture, out number))
                return number;
            throw Wrong(text, begin);
        }

        static string Text(string text, ref int at)
        {
            Expect(text, ref at, "\"");
            var value = new StringBuilder();
            while (at < text.Length && text[at] != '"')
            {
                char c = text[at++];
                if (c != '\\')
                {
                    value.Append(c);
                    continue;
                }
                int which = at < text.Length ? "\"\\/bfnrt".IndexOf(text[at]) : -1;
                ushort code;
                if (which >= 0)
                {
                    value.Append("\"\\/\b\f\n\r\t"[which]);
                    at++;
                }
                else if (at + 5 <= text.Length && text[at] == 'u' && ushort.TryParse(
                    text.Substring(at + 1, 4), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out code))
                {
                    value.Append((char)code);
                    at += 5;
                }
                else
                    throw Wrong(text, at);
            }
            Expect(text, ref at, "\"");
            return value.ToString();
        }

        static bool Begins(string text, ref int at, char end)
        {
            at++;
            Skip(text, ref at);
            if (at >= text.Length || text[at] != end)
                return true;
            at++;
            return false;
        }

        static bool GoesOn(string text, ref int at, char end)
        {
            Skip(text, ref at);
            if (at < text.Length && (text[at] == ',' || text[at] == end))
                return text[at++] == ',';
            throw Wrong(text, at);
        }

        static void Expect(string text, ref int at, string word)
        {
            if (string.CompareOrdinal(text, at, word, 0, word.Length) != 0)
                throw Wrong(text, at);
            at += word.Length;
        }

        static void Skip(string text, ref int at)
        {
            while (at < text.Length && " \t\r\n".IndexOf(text[at]) >= 0)
                at++;
        }

        static FormatException Wrong(string text, int at)
        {
            return new FormatException("no JSON at " + at + " of " + text.Length);
        }
    }
}
