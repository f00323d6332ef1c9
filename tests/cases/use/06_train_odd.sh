#!/bin/bash
# the smallest training of what 05 recorded: which recordings that were accepted can then not be trained on, and what is said?
cd .; export PYTHONPATH=mods:$PYTHONPATH SDL_VIDEODRIVER=dummy
ulimit -v 20000000
for id in "$@"; do
  rm -rf runs/$id runs/$id-autoencoder
  out=$( (timeout 120 worldsim train autoencoder out05/$id --steps 10 --widths 16 --encoder-blocks 1 --decoder-blocks 1 --unshuffle 4 --latent-channels 4 \
   && timeout 200 worldsim train dynamics out05/$id --steps 10 --segments 2 --image-samples 1 --frames 4 --rollout-segments 1 --rollout-start 5 --rollout-buffer 2 --width 32 --heads 2 --pattern st --text-layers ${TEXT:-0} --history 2 --context 4 --compile False \
   && timeout 100 worldsim play runs/$id/world --headless --steps 5 --out runs/$id.mp4) 2>&1 ); rc=$?
  echo "[$id] rc=$rc $(echo "$out" | tr '\r' '\n' | grep -v '%|\|step/s\|frame/s' | tail -2 | cut -c1-500 | tr '\n' '|')$(echo "$out" | grep -c Traceback | sed 's/^0$//;s/^[1-9].*/ TRACEBACK/')"
  echo "$out" > runs/$id.log
done
