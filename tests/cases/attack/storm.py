"""Black-box exactness storm: python storm.py WORLD RUNTIME SECONDS SEED [MAX_SESSIONS] [THREADS] [DTYPE]"""
import sys, os, time, json, random, hashlib, tempfile
os.environ.setdefault("SDL_VIDEODRIVER","dummy")
import numpy as np, torch
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.engine.records import SessionSpec
from worldsim.envs.shipped import world_path
from worldsim.world import World
name, runtime, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
most = int(sys.argv[5]) if len(sys.argv)>5 else 40
threads = int(sys.argv[6]) if len(sys.argv)>6 else 2
dtype = getattr(torch, sys.argv[7]) if len(sys.argv)>7 and sys.argv[7]!="-" else None
exact = not (len(sys.argv)>8 and sys.argv[8]=="inexact")
rng = random.Random(seed)
world = World.from_pretrained(world_path(name), dtype)
eng = Engine(world, runtime=runtime, threads=threads, exact=exact)
print("runtime", eng.runtime.name, eng.runtime.identity, "sizes", {k:list(v) for k,v in eng.sizes.items()}, "largest", eng.runtime.largest, flush=True)
space = world.action_space; space.seed(seed)
prompts = list(world.card.prompts) + ["", "a road of glass at dusk", "purple swamp", "night and fog"]
H,W = world.card.frame_size
def dig(step): 
    return hashlib.blake2b(step.frame.tobytes()+np.float64([step.reward, step.ended]).tobytes()+str(step.step).encode(), digest_size=8).hexdigest()
def memdig(e, n):
    s = e.snapshot(n, share=False); m = s.memory
    h = hashlib.blake2b(digest_size=8)
    for t in (m.keys, m.values, m.latents): h.update(t.contiguous().view(torch.uint8).numpy().tobytes())
    s.close(); return h.hexdigest()
def opening():
    k = rng.randrange(6)
    o = {"seed": rng.choice([rng.randrange(1000), 2**70+rng.randrange(9), rng.randrange(2**40), -5])}
    if k in (1,2,5): o["prompt"] = rng.choice(prompts)
    if k in (2,3) and world.starts: o["start"] = rng.randrange(len(world.starts))
    if k == 4:
        T = rng.randrange(1,12); fr = np.random.default_rng(rng.randrange(99)).integers(0,256,(T,H,W,3),dtype=np.uint8)
        acts = [space.sample() for _ in range(T-1)]
        o["start"] = {"frames": fr, "actions": np.array(acts) if T>1 else []}
    if rng.random()<.25: o["guidance"] = rng.choice([0.0, 1.5, 2.5, 1.0])
    return o
live = {}   # number -> list of events
done = []   # finished leaf logs
kept = []   # (Snapshot, log)
tmp = tempfile.mkdtemp(dir=".")
frames = 0; ops = {}
t0 = time.time()
def count(n): ops[n] = ops.get(n,0)+1
class Bad: pass
while time.time()-t0 < seconds:
    r = rng.random()
    try:
        if (r<.10 or not live) and len(live)<most:
            o = opening(); n = eng.open(**o); live[n] = [("open", o, hashlib.blake2b(eng.sessions[n].frame.tobytes(),digest_size=8).hexdigest())]; count("open")
        elif r<.12 and len(live)+4<most:
            os_ = [opening() for _ in range(4)]
            for n,o in zip(eng.open_all([SessionSpec(**o) for o in os_]), os_):
                live[n] = [("open", o, hashlib.blake2b(eng.sessions[n].frame.tobytes(),digest_size=8).hexdigest())]
            count("open_all")
        elif r<.16 and live:
            n = rng.choice(list(live)); live[n].append(("mem", memdig(eng,n))); eng.close(n); done.append(live.pop(n)); count("close")
        elif r<.20 and live and len(live)<most:
            n = rng.choice(list(live)); s = rng.choice([None, rng.randrange(99)]); m = eng.fork(n, s); live[m] = list(live[n])+([("seed", s)] if s is not None else []); count("fork")
        elif r<.23 and live:
            n = rng.choice(list(live)); kept.append((eng.snapshot(n, share=rng.random()<.5), list(live[n]))); count("snapshot")
            if len(kept)>10: kept.pop(rng.randrange(len(kept)))[0].close()
        elif r<.25 and kept:
            s,log = rng.choice(kept); n = rng.choice(list(live)) if live and rng.random()<.6 else None
            if n is None and len(live)>=most: continue
            if rng.random()<.5:
                p=f"{tmp}/s.session"; s.save(p); s2=Snapshot.load(p)
            else: s2=s
            if n is not None: done.append(live[n])
            m = eng.restore(s2, n); live[m] = list(log); count("restore")
        elif r<.29 and live:
            n = rng.choice(list(live)); p = rng.choice(prompts); eng.set_prompt(n,p); live[n].append(("prompt",p)); count("prompt")
        elif r<.31 and live:
            n = rng.choice(list(live))
            try: eng.step({n: "x", **{k: space.sample() for k in live if k!=n}})
            except Exception: count("refused")
        elif r<.34 and live:
            ns = rng.sample(list(live), rng.randrange(1,min(len(live),12)+1))
            acts = {n:[space.sample() for _ in range(rng.randrange(1,5))] for n in ns}
            out = eng.play(acts, frames="all")
            for n in ns:
                for a,s in zip(acts[n], out[n]): live[n].append(("step",a,dig(s))); frames+=1
            count("play")
        elif live:
            k = rng.choice([1,2,3,5,8,13,len(live),len(live)])
            ns = rng.sample(list(live), min(k,len(live))); rng.shuffle(ns)
            acts = {n: space.sample() for n in ns}
            out = eng.step(acts)
            for n in ns: live[n].append(("step",acts[n],dig(out[n]))); frames+=1
            if rng.random()<.05:
                n=rng.choice(ns); live[n].append(("mem", memdig(eng,n)))
            count("step")
            for n in list(live):
                if len(live[n])>150: eng.close(n); done.append(live.pop(n))
    except Exception as e:
        print("EXC", type(e).__name__, str(e)[:200], flush=True); raise
for n in list(live): live[n].append(("mem", memdig(eng,n))); done.append(live.pop(n)); eng.close(n)
for s,_ in kept: s.close()
st = eng.stats(); print("storm", json.dumps({"frames":frames,"leaves":len(done),"ops":ops,"secs":round(time.time()-t0), "used": st["memory_bytes"], "pinned": st["pinned_bytes"]}), flush=True)
eng.close()
print("after close used", eng.stats()["memory_bytes"], flush=True)
# solo
solo = Engine(world, runtime=runtime, threads=1)
t0=time.time(); checked=0; mism=0; memchecked=0; distinct=set()
budget = seconds*2.5
first=None
rng.shuffle(done)
for li,log in enumerate(done):
    if time.time()-t0>budget: break
    n = solo.open(**log[0][1])
    ok = hashlib.blake2b(solo.sessions[n].frame.tobytes(),digest_size=8).hexdigest()==log[0][2]
    if not ok: mism+=1; print("MISMATCH at open", log[0][1].keys(), flush=True)
    i=0
    for ev in log[1:]:
        if ev[0]=="step":
            d=dig(solo.step({n:ev[1]})[n]); checked+=1; i+=1; distinct.add(ev[2])
            if d!=ev[2]:
                mism+=1; first = first or checked
                print(f"MISMATCH frame after {checked} checked; leaf {li} step {i} of {len(log)}; prompt {solo.sessions[n].prompt!r} guidance {solo.sessions[n].guidance}", flush=True)
                break
        elif ev[0]=="prompt": solo.set_prompt(n, ev[1])
        elif ev[0]=="seed":
            m = solo.fork(n, ev[1]); solo.close(n); n=m
        elif ev[0]=="mem":
            memchecked+=1
            if memdig(solo,n)!=ev[1]:
                mism+=1; first = first or checked
                print(f"MISMATCH memory after {checked} frames checked; leaf {li} step {i}; guidance {solo.sessions[n].guidance}", flush=True); break
    solo.close(n)
print("solo", json.dumps({"checked":checked,"distinct":len(distinct),"mem_checked":memchecked,"mismatches":mism,"first":first,"leaves_checked":li+1,"of":len(done),"secs":round(time.time()-t0)}), flush=True)
