"""kill -9 in the middle, run again, compare with one uninterrupted run."""
import subprocess, sys, time, os, shutil, hashlib, signal, random
from pathlib import Path
PY=[sys.executable,"-m","worldsim.cli"]; O=Path("./out/kill"); shutil.rmtree(O,ignore_errors=True); O.mkdir()
def digest(d, pat="*.safetensors"): return {str(p.relative_to(d)):hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(Path(d).rglob(pat))}
def go(cmd, kill=None):
    p=subprocess.Popen(cmd,stdout=subprocess.DEVNULL,stderr=subprocess.PIPE,text=True,cwd=O,start_new_session=True)
    if kill is None: e=p.communicate()[1]; return p.returncode, e[-200:]
    try: p.wait(kill); return p.returncode,"done before"
    except subprocess.TimeoutExpired:
        os.killpg(p.pid,9) ; p.wait(); p.stderr.close(); return -9,"killed"
which=sys.argv[1]
if which=="record":
    args=["record","CartPole-v1","--frames","6000","--workers","1","--frame-size","40","40","--prompt","a cart"]
    t=time.time(); r=go(PY+args+["--out","a"]); T=time.time()-t; print("record alone",r[0],f"{T:.0f}s",r[1][-100:] if r[0] else "",flush=True)
    random.seed(1); n=0
    for k in range(6):
        r=go(PY+args+["--out","b"],kill=T*random.uniform(.3,.8)); n+=r[0]==-9
        if r[0]==0: break
    r=go(PY+args+["--out","b"]); print("record after",n,"kills:",r[0], "equal files:", digest(O/"a")==digest(O/"b"), len(digest(O/"a")), "leftovers",[p.name for p in (O/"b").rglob("*.partial")])
elif which=="ae":
    args=["train","autoencoder","./tiny/data","--steps","60","--batch","4","--checkpoint-minutes","0.02","--log-every","5"]
    t=time.time(); r=go(PY+args+["--out","a"]); T=time.time()-t; print("autoencoder alone",r[0],f"{T:.0f}s",r[1][-300:] if r[0] else "",flush=True)
    n=0
    for k in range(4):
        r=go(PY+args+["--out","b"],kill=T*random.uniform(.5,.9)); n+=r[0]==-9
        if r[0]==0: break
    r=go(PY+args+["--out","b"]); print("autoencoder after",n,"kills:",r[0],r[1][-150:] if r[0] else "")
    a,b=digest(O/"a"),digest(O/"b"); print("equal weights:",a==b,[k for k in a if a[k]!=b.get(k)], "leftover", [p.name for p in (O/"b").rglob("*.partial")])
elif which=="dyn":
    args=["train","dynamics","./tiny/data","--autoencoder","./tiny/ae","--steps","60","--segments","3","--image-samples","2","--frames","5","--rollout-segments","2","--rollout-start","30","--rollout-buffer","2","--no-compile","--checkpoint-minutes","0.02","--width","32"]
    t=time.time(); r=go(PY+args+["--out","a"]); T=time.time()-t; print("dynamics alone",r[0],f"{T:.0f}s",r[1][-500:] if r[0] else "",flush=True)
    if r[0]: sys.exit()
    n=0
    for k in range(3):
        r=go(PY+args+["--out","b"],kill=T*random.uniform(.6,.95)); n+=r[0]==-9
        if r[0]==0: break
    r=go(PY+args+["--out","b"]); a,b=digest(O/"a"),digest(O/"b"); print("dynamics after",n,"kills:",r[0],"equal:",a==b,[k for k in a if a[k]!=b.get(k)])
