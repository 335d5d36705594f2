#!/usr/bin/env bash
# From a checkpoint after the dialogue stage to the shipped files and their figures.
#
#   tools/small_model/finish_small.sh DATA RUN EXPORT
#
# Exports RUN/chat.pt, judges it and samples from it. Figures land in docs/results, the model in models/.
set -euo pipefail
data=$1 run=$2 export=$3
here=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$export"
"$python" "$here/tools/small_model/export_moe.py" --checkpoint "$run/chat.pt" \
  --tokenizer "$data/tokenizer.json" --out "$export" --name remoe-small --types f32 f16 q8_0 q4_0 --hf
cp "$export/remoe-small-q8_0.gguf" "$here/models/remoe-small-q8_0.gguf"
cp "$run/loss.png" "$here/models/loss-dialogue.png"
"$python" "$here/tools/small_model/sample_chat.py" "$here/models/remoe-small-q8_0.gguf" > "$here/models/samples.md"
"$python" "$here/tools/small_model/evaluate_moe.py" --data "$data" --run "$run" \
  --window 256 --tokens "${EVAL_TOKENS:-20000}" -o "$here/docs/results/small-model.json"
"$python" "$here/tools/small_model/check_export.py" --checkpoint "$run/chat.pt" --data "$data" \
  --gguf "$export"/remoe-small-{f32,f16,q8_0,q4_0}.gguf --hf "$export/hf" \
  --positions "${CHECK_POSITIONS:-20480}" -o "$here/docs/results/small-model.json"
