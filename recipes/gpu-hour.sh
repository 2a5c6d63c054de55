#!/bin/sh
# What to run when a GPU is at hand, in this order; called again, it continues where it was interrupted.
#
#   recipes/gpu-hour.sh DATA [OUTPUT]
#
# DATA is the folder with cifar10 (or cifar-10-batches-py) and imagenette; OUTPUT, `runs` by default, gets the runs,
# their reports and the benchmarks. JOBS processes share the GPUs, 7 by default; where CUDA's own service lets their kernels
# run side by side (`nvidia-cuda-mps-control -d`, before this), ResNet-20 trains almost twice as fast.
set -eu
data=${1:?usage: recipes/gpu-hour.sh DATA [OUTPUT]}
output=${2:-runs}
mkdir -p "$output"

# The paper's table for CIFAR-10: seven rules, five seeds, 250 epochs. The runs that are there count.
for run in "$(dirname "$0")"/../docs/results/cifar10/runs/*; do
    [ -e "$output/$(basename "$run")" ] || cp -r "$run" "$output"
done
pfa-convert reproduce cifar10 --data "$data" --output "$output" --jobs "${JOBS:-7}"

# Step time and memory of each rule over backpropagation's, alone on the GPU.
bench() {
    [ -s "$output/bench-$1.json" ] && return
    name=$1
    shift
    pfa-convert bench "$@" --device cuda --json > "$output/bench-$name.part"
    mv "$output/bench-$name.part" "$output/bench-$name.json"
}
bench resnet20 paper/resnet20 --batch-size 128
bench resnet18 resnet18 --batch-size 256
bench resnet50 resnet50 --batch-size 64 --precision bf16 --channels-last
bench vit-base timm/vit_base_patch16_224 --batch-size 64 --precision bf16 --option block_size=64

# ResNet-18 at 128 pixels.
pfa-convert reproduce imagenette-resnet18 --data "$data" --output "$output" --rules bp,pfa,pfa-o,kp,usf --jobs 2

# The vision transformer with AdamW: eleven variants, three seeds, 30 epochs.
pfa-convert reproduce cifar10-vit --data "$data" --output "$output" --jobs "${JOBS:-7}"
