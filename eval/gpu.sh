#!/usr/bin/env bash
# The colour model on one GPU in ten minutes: data in, train, score, weights out.
#
#   bash eval/gpu.sh FILE.npz OUT [MINUTES]      the set as one file of arrays (x_train, y_train, x_test, y_test)
#   bash eval/gpu.sh PARTS OUT [MINUTES]         or a folder of its parts
#
# Where at most 64 MiB can be carried at a time, pack the set first (python eval/pack_arrays.py pack FILE.npz PARTS), carry
# one part, copy it to a folder that stays, carry the next, and then run this with that folder.
# OUT gets the run folder without its state, evaluation.json (FID at 2 to 32 evaluations, bits a dimension), and speed.json:
# images a second, the share of the chip's arithmetic that training uses, times of sampling and of scoring.
set -euo pipefail
data=$1 out=$2 minutes=${3:-6}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
mkdir -p "$out"
if [ -d "$data" ]; then
    "$python" "$here/eval/pack_arrays.py" join "$data" "$out/set.npz"
    data=$out/set.npz
fi
run=$out/run
cd "$here"
# A first minute measures the speed; the number of epochs is what then fits into the time.
epochs=$("$python" eval/gpu_epochs.py "$data" "$minutes" "$out/speed.json")
"$python" -m ncode_gen.train models/arrays/ncode-flow-labels.toml --data.root "$data" --out "$run" --device cuda \
    --observation.width 96 --encoder.width 64 --prior.iterations 20000 --prior.batch 512 --prior.guide 32 \
    --training.batch 512 --training.epochs "$epochs" --training.compile on --features.kind cifar10-classifier
for evaluations in 2 4 8 16 32; do
    "$python" -m ncode_gen.evaluate "$run" --n 10000 --particles 0 --evaluations "$evaluations" --device cuda \
        --out "$out/evaluation-$evaluations.json"
done
"$python" -m ncode_gen.evaluate "$run" --n 10000 --likelihood-images 1000 --device cuda
"$python" -m ncode_gen.sample "$run" --n 100 --label each --guidance 1.5 --out "$out/samples.png" --device cuda
rm -rf "$run/state" "$out/set.npz"
