// Plays a hosted world from the command line, without an engine:
//
//     mcs Worldsim.cs Example.cs -out:example.exe
//     mono example.exe drive tcp://127.0.0.1:5570 7 300    300 steps: the SHA-256 of each frame
//     mono example.exe tour tcp://127.0.0.1:5570           every other thing a client can do
//
// The actions of `drive` are 0 or 1, for a world of two actions, by a plain rule that other languages follow too.

using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Security.Cryptography;
using System.Threading;
using Worldsim;

/// <summary>A client whose connection breaks at two sends: just before one, and just after the other.</summary>
class UnluckyClient : Client
{
    readonly int lostRequest;
    readonly int lostReply;
    int sent;

    public UnluckyClient(string address, int lostRequest, int lostReply) : base(address, "worldsim C# example")
    {
        this.lostRequest = lostRequest;
        this.lostReply = lostReply;
    }

    protected override void Send(byte[] header)
    {
        sent++;
        if (sent == lostRequest)
        {
            Disconnect();
            throw new System.IO.IOException("the cable was pulled");
        }
        base.Send(header);
        if (sent == lostReply)
        {
            Thread.Sleep(100);  // long enough for the host to draw the frame, whose reply is lost then
            Disconnect();
            throw new System.IO.IOException("the cable was pulled");
        }
    }
}

static class Example
{
    static int Main(string[] args)
    {
        try
        {
            if (args.Length == 4 && args[0] == "drive")
                Drive(args[1], long.Parse(args[2], CultureInfo.InvariantCulture),
                      int.Parse(args[3], CultureInfo.InvariantCulture));
            else if (args.Length == 2 && args[0] == "tour")
                Tour(args[1]);
            else
            {
                Console.Error.WriteLine("usage: example drive ADDRESS SEED COUNT | tour ADDRESS");
                return 2;
            }
            return 0;
        }
        catch (WorldsimException error)
        {
            Console.Error.WriteLine(error.Code + ": " + error.Message);
            return 1;
        }
    }

    static void Drive(string address, long seed, int count)
    {
        using (var client = new UnluckyClient(address, count / 3, 2 * count / 3))
        {
            Session session = client.Open(seed: seed, prompt: "a cart");
            Print(session.Frame);
            for (long i = 0, x = seed; i < count; i++)
            {
                x = (1103515245 * x + 12345) % (1L << 31);
                Print(session.Step(x >> 16 & 1));
            }
            session.Close();
            Console.Error.WriteLine("connections: " + client.Connections + ", steps: " + session.StepCount);
        }
    }

    static void Tour(string address)
    {
        using (var client = new Client(address))
        {
            client.Connect();
            var world = (Dictionary<string, object>)((List<object>)client.Hello["worlds"])[0];
            string name = (string)world["name"];
            string key = ((Dictionary<string, object>)world["keys"]).Keys.LastOrDefault() ?? "right";
            Console.WriteLine("{0}, key {1}", name, key);

            Session session = client.Open(name, 3, "a cart", guidance: 1.5);
            long begin = session.StepCount;
            Check("open", session.Frame.Step == begin && session.Prompt == "a cart");
            string snapshot = session.Snapshot();
            Session twin = session.Fork();
            Frame next = session.StepKeys(key);
            Check("fork", twin.Token != session.Token && Same(twin.StepKeys(key), next));
            session.Restore(snapshot);
            Check("restore", Same(session.StepKeys(key), next) && session.StepCount == begin + 1);
            Check("reward", next.Ended > 0 && next.Ended < 1);
            Check("attach", Same(client.Attach(session.Token).Frame, next));
            session.SetPrompt("a cart");
            Check("refusal", Refusal(() => session.Step(99)) == "bad-action");
            Frame first = session.Reset(4, "a cart");
            Check("reset", session.StepCount == begin && Same(session.Reset(4, "a cart"), first));

            session.Watch();
            session.Run(fps: 200);
            session.InputKeys(key);
            long last = begin;
            for (int i = 0; i < 100; i++)  // more than are sent without new credits
            {
                Frame frame = session.NextFrame(5);
                Check("watch", frame != null && (i == 51 ? frame.Step > last : frame.Step == last + 1 + frame.Dropped));
                last = frame.Step;
                if (i == 50)
                    client.Disconnect();  // from here the frames come over a new connection
            }
            session.Pause();
            Check("pause", session.StepCount >= last && session.StepKeys("").Step == session.StepCount);
            session.Unwatch();
            session.Close();
            twin.Close();
            Check("close", Refusal(() => twin.StepKeys(key)) == "no-session");
        }
        Console.WriteLine("all well");
    }

    static void Check(string what, bool well)
    {
        if (!well)
            throw new WorldsimException("tour", what + " is not as it should be");
    }

    static string Refusal(Action ask)
    {
        try
        {
            ask();
            return "";
        }
        catch (WorldsimException error)
        {
            return error.Code;
        }
    }

    static bool Same(Frame one, Frame other)
    {
        return one.Width == other.Width && one.Pixels.SequenceEqual(other.Pixels);
    }

    static void Print(Frame frame)
    {
        using (SHA256 sha = SHA256.Create())
            Console.WriteLine(BitConverter.ToString(sha.ComputeHash(frame.Pixels)).Replace("-", "").ToLowerInvariant());
    }
}
