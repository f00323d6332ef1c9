import os, sys
os.environ.setdefault("SDL_VIDEODRIVER","dummy")
from pathlib import Path
sys.path.insert(0,str(Path(__file__).resolve().parents[2]))
import torch; torch.set_num_threads(1); torch.manual_seed(7)
from tiny import tiny_autoencoder, tiny_dynamics
from worldsim.data.record import RecordConfig, record
from worldsim.training.autoencoder import train_autoencoder
from worldsim.training.run import train_dynamics
out=Path("./tiny"); 
ds=record(RecordConfig(game="CartPole-v1", out=out/"data", frames=400, workers=1, frame_size=(40,40), prompt="a cart"))
train_autoencoder(tiny_autoencoder(ds, out/"ae"))
train_dynamics(tiny_dynamics(ds, out/"ae", out/"dyn"))
