"""Default environment (256 MB): snapshots up to EngineFull, then go back to a snapshot from a file."""
import gymnasium as gym, worldsim.envs, warnings; warnings.simplefilter("ignore")
from worldsim.engine.session import Snapshot
e=gym.make("worldsim/CarRacing-v0").unwrapped; e.reset(seed=1); a=e.action_space.sample()
for _ in range(12): e.step(a)
eng=e.engine; n=next(iter(eng.sessions)); eng.snapshot(n,share=False).save("./out/d.session")
kept=[]
try:
    while True: e.step(a); kept.append(e.snapshot())
except Exception as x: print("after",len(kept),"snapshots:",type(x).__name__)
e.step(a); print("steps on: ok; free blocks", eng.table.pool.free)
try: e.restore(Snapshot.load("./out/d.session")); print("restore ok")
except Exception as x: print("restore from a file:",type(x).__name__,str(x)[:70])
try: e.step(a); print("step ok")
except Exception as x: print("step afterwards:",type(x).__name__,str(x)[:70])
kept.clear(); import gc; gc.collect()
print("all snapshots dropped; free", eng.table.pool.free, "used", eng.table.pool.used, "reserved", eng.table.pool.reserved)
