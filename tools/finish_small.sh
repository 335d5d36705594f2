#!/usr/bin/env bash
# From a base checkpoint to the shipped files and their figures.
#
#   tools/finish_small.sh DATA RUN EXPORT [DIALOGUE_SECONDS]
#
# ROWS, LR, MUON_LR and CHAT_SHARE (what is not chat is the base mixture) are the dialogue stage's.
# Copies RUN/base.pt aside, so that the base run may go on meanwhile; runs the dialogue stage;
# exports; judges; samples. Figures land in docs/results, the model in models/.
set -euo pipefail
data=$1 run=$2 export=$3 seconds=${4:-600}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
stage=$export/run
mkdir -p "$stage"
cp "$run/base.pt" "$stage/base.pt"
rm -f "$stage/chat.pt"
nice -n 10 "$python" "$here/tools/train_moe.py" --data "$data" --out "$stage" --stage chat --device cpu \
  --rows "${ROWS:-16}" --micro-rows 16 --length 256 --lr "${LR:-1e-3}" --muon-lr "${MUON_LR:-4e-3}" --balance 0.02 --warmup 5 \
  --decay-share 0.9 --chat-share "${CHAT_SHARE:-0.75}" --compile --log-every 5 --plan-seconds "$seconds" --no-eval
"$python" "$here/tools/export_moe.py" --checkpoint "$stage/chat.pt" \
  --tokenizer "$data/tokenizer.json" --out "$export" --name remoe-small --types f32 f16 q8_0 q4_0 --hf
cp "$export/remoe-small-q8_0.gguf" "$here/models/remoe-small-q8_0.gguf"
cp "$stage/loss.png" "$here/models/loss.png"
"$python" "$here/tools/evaluate_moe.py" --data "$data" --run "$stage" \
  --window 256 --tokens "${EVAL_TOKENS:-20000}" -o "$here/docs/results/small-model.json"
"$python" "$here/tools/check_export.py" --checkpoint "$stage/chat.pt" --data "$data" \
  --gguf "$export"/remoe-small-{f32,f16,q8_0,q4_0}.gguf --hf "$export/hf" \
  --positions "${CHECK_POSITIONS:-20480}" -o "$here/docs/results/small-model.json"
"$python" "$here/tools/sample_chat.py" "$here/models/remoe-small-q8_0.gguf" > "$here/models/samples.md"
