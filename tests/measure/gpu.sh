#!/usr/bin/env bash
# The figures of one GPU, meant to take less than eight minutes: steps of GPT-2 small, ResNet-50 and
# attention over 32,768 tokens, and generation, each with its shares of the measured peaks; and a
# training on CIFAR-10. What it gave is in figures.md.
#
#   bash tests/measure/gpu.sh OUT [CIFAR]        results as JSON in the new folder OUT; CIFAR is a
#                                                folder in torchvision's layout, or with
#                                                train.parquet and test.parquet (else not trained)
#   SMALL=1 bash tests/measure/gpu.sh OUT        the same on a CPU, with tiny sizes: a trial
#
# To beat, on one H100 or H200: 480,000 tokens/s of GPT-2 small (llm.c 475,000), 4,700 images/s of
# ResNet-50, 94 % on CIFAR-10 in 3 s (1.99 s on an A100).
set -euo pipefail
out=$1 cifar=${2:-}
mkdir "$out"
here=$(cd "$(dirname "$0")/../.." && pwd)
samples=$here/sample_configs
run() { PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} "${PYTHON:-python}" -m bigmodel_cli "$@"; }

if [ -n "${SMALL:-}" ]; then
  device=cpu seconds=1 batch=2 images=2 length=512 prompt=(--batch 1)
  gpt=(--set model.dim=64 --set model.blocks.0.repeat=2 --set model.blocks.0.mixer.num_heads=4
       --set data.context=64 --set data.max_bytes=200_000 --set data.tokenizer.vocab_size=300
       --set model.vocab_size=320)
  image=(--set data.size=32) attention=(--set model.dim=64)
  cifar_run=(--set train.validate_epochs=null --set train.epochs=null --set train.steps=2 --set train.batch_size=8)
else
  device=cuda seconds=10 batch=32 images=256 length=32768 prompt=(--batch 1)
  gpt=() image=() attention=() cifar_run=()
fi
plain=(--set model.dropout=0 --set model.blocks.0.dropout=0 --set model.blocks.0.mixer.dropout=0)

cat > "$out/resnet50.yaml" <<YAML
model: {type: torchvision, name: resnet50}
data: {type: cifar10, root: none, size: 224}
task: {type: classification}
train: {steps: 100, batch_size: $images, optimizer: {type: sgd, lr: 0.1, momentum: 0.9}}
YAML
cat > "$out/attention.yaml" <<YAML
model:
  type: decoder
  dim: 1024
  blocks:
    - {repeat: 2, mixer: {type: attention, num_heads: 8, position: rotary}, ffn: swiglu}
data: {type: stdlib, context: $length, max_bytes: 4_000_000}
task: causal_lm
train: {steps: 100, batch_size: 1, optimizer: {type: adamw, lr: 1e-4}}
YAML

own=() # of each network: its spec and what of it is changed
network() { # NAME: sets `own`
  case $1 in
    gpt2) own=("$samples/gpt2.yaml" "${plain[@]}" "${gpt[@]}" --set train.batch_size=$batch
               --set train.micro_batch_size=null --set train.precision=bf16) ;;
    resnet50) own=("$out/resnet50.yaml" "${image[@]}" --set train.precision=bf16
                   --set train.memory_format=channels_last) ;;
    attention) own=("$out/attention.yaml" "${attention[@]}" --set train.precision=bf16) ;;
    generation) own=("$samples/gpt2.yaml" --doing generation --precision bf16 "${plain[@]}"
                     "${gpt[@]}" "${prompt[@]}") ;;
  esac
}
measure() { # NAME ARGUMENTS...: the table on the screen, every sample in NAME.json
  local name=$1
  shift
  echo "== $name"
  network "$name"
  run bench "${own[@]}" "$@" --device $device --seconds $seconds --out "$out/$name.json" |
    tee "$out/$name.txt" || echo "$name: failed"
}
train() { # DIRECTORY CHANGES...: CIFAR-10
  local at=$1
  shift
  run pretrain "$out/cifar10_94.yaml" --device $device --out "$at" --set train.precision=bf16 \
    --set train.memory_format=channels_last --set train.log_every=25 "$@"
}
if [ -n "$cifar" ]; then
  sed "s#root: data.*#root: '$cifar'#" "$samples/cifar10_94.yaml" > "$out/cifar10_94.yaml"
  if [ -f "$cifar/train.parquet" ]; then
    sed -i "s#type: cifar10#type: parquet_images#; s#root: .*#train: ['$cifar/train.parquet']\n  test: \
['$cifar/test.parquet']#" "$out/cifar10_94.yaml"
  fi
fi

# everything is compiled, and all data read, side by side; then each is measured alone
networks="gpt2 resnet50 attention generation"
for name in $networks; do
  network "$name"
  run bench "${own[@]}" --device $device --seconds 1 > "$out/first_$name.log" 2>&1 &
done
if [ -n "$cifar" ]; then
  train "$out/first" --set train.epochs=null --set train.steps=2 "${cifar_run[@]}" \
    --set train.validate_epochs=null > "$out/first_cifar.log" 2>&1 &
fi
wait
measure gpt2 --roof
for name in ${networks#gpt2 }; do measure "$name"; done
if [ -n "$cifar" ]; then
  echo "== cifar10_94"
  train "$out/cifar10_94" "${cifar_run[@]}"
  grep '"lr"' "$out/cifar10_94/metrics.jsonl" | sed -n '1p;$p' # "elapsed": the seconds of training
  run eval "$out/cifar10_94" --device $device
fi
