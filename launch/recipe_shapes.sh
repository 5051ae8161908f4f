#!/usr/bin/env bash
# The paper's recipe in small, stage by stage (configs/recipe_shapes.py), then a page of what each stage gained.
#
#   launch/recipe_shapes.sh runs/recipe [STAGE ...]      # all stages and the page, or those stages alone
#
# The same command goes on where it was stopped: finished stages are left alone, a half one goes on from its checkpoint. A stage
# whose directory is removed is done again; remove those behind it too, if they are to begin with the new one.
# RECIPE_WORDS=,runlocal tries every stage for a few steps.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: $0 WORKDIR [STAGE ...]" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
out=${1%/}
shift
wanted=" $* "
config=$here/configs/recipe_shapes.py

# stage NAME INIT_FROM: trains it unless its report says that it is done.
stage() {
  if [ "$wanted" != "  " ] && [[ $wanted != *" $1 "* ]]; then return; fi
  if [ -e "$out/$1/report.json" ]; then
    echo "recipe: $1 is done" >&2
    return
  fi
  echo "recipe: $1" >&2
  orthus train --config="$config:$1${RECIPE_WORDS:-}" --workdir="$out/$1" "--config.run.init_from=$2"
}

stage tokenizer "()"
stage chameleon "(('vision_tokenizer/','$out/tokenizer/weights.npz'),)"
stage base "(('','$out/chameleon'),)"
stage decoder "(('','$out/base'),)"
tuned="(('','$out/base'),('vision_tokenizer/','$out/decoder'))"
stage post "$tuned"
stage edit "$tuned"
stage story "$tuned"
if [ "$wanted" != "  " ]; then exit 0; fi
python "$here/benchmarks/recipe_page.py" "$out"
