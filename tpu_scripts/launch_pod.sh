#!/usr/bin/env bash
# Trains on a TPU slice that exists for this one run: see usage() or --help.
set -euo pipefail

usage() {
  cat <<'END'
Usage: tpu_scripts/launch_pod.sh --name=NAME --zone=ZONE [FLAG ...]
         [-- TRAIN_FLAG ...]

Creates a TPU slice, installs the checkout on all of its workers, runs
`python -m tpu_scripts.train_lm` on the slice with the flags after `--`,
follows its log, and deletes the slice, also after a failure. The exit code is
that of the training. What it writes survives in a bucket only:
--model_dir=gs://...

  --name=NAME              of the slice
  --zone=ZONE              such as us-central1-a
  --accelerator_type=TYPE  default v5litepod-16
  --version=VERSION        TPU software, tpu-vm-tf-X.Y.Z-pod...; default
                           tpu-vm-tf-2.18.0-pod-pjrt-v5e-and-v6; for a v4
                           or older tpu-vm-tf-2.18.0-pod-pjrt
  --project=PROJECT        default: that of gcloud
  --spot                   cheaper, but may be taken away
  --keep                   do not delete the slice
  --dry_run                print the commands, run nothing
  --help                   print this
END
}

refuse() {
  echo "$0: $1 (--help lists the flags)" >&2
  exit 2
}

name='' zone='' project='' spot=false keep=false dry_run=false
accelerator_type=v5litepod-16
version=tpu-vm-tf-2.18.0-pod-pjrt-v5e-and-v6
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --accelerator_type=*) accelerator_type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --spot) spot=true ;;
    --keep) keep=true ;;
    --dry_run) dry_run=true ;;
    --help) usage; exit ;;
    --) shift; break ;;
    *) refuse "unknown argument '$1'; a value follows '='" ;;
  esac
  shift
done
[ -n "$name" ] || refuse "--name is missing"
[ -n "$zone" ] || refuse "--zone is missing"
[[ $version =~ ^tpu-vm-tf-([0-9]+\.[0-9]+)\.[0-9]+-pod(-|$) ]] ||
  refuse "--version has to be tpu-vm-tf-X.Y.Z-pod..., not '$version'"
tensorflow=${BASH_REMATCH[1]}

# quoted WORD ...: the words as one line of shell.
quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# tpu_vm VERB ARGUMENT ...: runs or prints one command of gcloud.
tpu_vm() {
  local command=(gcloud compute tpus tpu-vm "$@" "--zone=$zone" --quiet)
  [ -z "$project" ] || command+=("--project=$project")
  if $dry_run; then quoted "${command[@]}"; else "${command[@]}"; fi
}

tear_down() {
  local status=$?
  if ! tpu_vm delete "$name"; then
    echo "$0: the slice $name is still there" >&2
    [ "$status" != 0 ] || status=1
  fi
  exit "$status"
}

# The TensorFlow here has to be that of the servers on the workers. 2.18 needs
# a libtpu that the extra "tpu" excludes, from a page outside PyPI. To find
# a slice by its name TensorFlow needs Google's API client.
install="cd checkout && { python3 -m venv .venv || \
{ sudo apt-get -q update && sudo apt-get -qy install python3-venv && \
python3 -m venv .venv; }; } && .venv/bin/pip install -q \
--find-links=https://storage.googleapis.com/libtpu-tf-releases/index.html \
'.[train]' 'tensorflow-tpu==$tensorflow.*' \
google-api-python-client oauth2client"

# One program drives the slice: it runs on worker 0 and reaches the TPUs of all
# workers, its own too, by the slice's name, through the TensorFlow server that
# "-pod" software runs on each. So it must not take the TPU for itself:
# TPU_LOAD_LIBRARY=0.
train=$(quoted TPU_LOAD_LIBRARY=0 .venv/bin/python -u -m tpu_scripts.train_lm \
  --strategy=tpu "--tpu=$name" "$@")
# Detached, so that with --keep it outlives the connection.
start="cd checkout && rm -f train.status && { nohup bash -c \
$(quoted "$train; echo \$? > train.status") > train.log 2>&1 < /dev/null & \
echo \$! > train.pid; }"
logs="cd checkout && tail -n +1 -F --pid=\$(cat train.pid) train.log && \
exit \$(cat train.status)"

create=(create "$name" "--accelerator-type=$accelerator_type")
create+=("--version=$version")
if $spot; then create+=(--spot); fi
tpu_vm "${create[@]}"
# Not before: a slice of this name that was there already is not ours.
if ! $keep; then trap tear_down EXIT; fi

root=$(cd "$(dirname "$0")/.." && pwd)
tpu_vm ssh "$name" --worker=all --command="mkdir -p checkout"
tpu_vm scp --recurse "$root"/{LICENSE,README.md,pyproject.toml,setup.cfg} \
  "$root"/{tf_adamw,tpu_scripts} "$name:checkout/" --worker=all
tpu_vm ssh "$name" --worker=all --command="$install"
tpu_vm ssh "$name" --worker=0 --command="$start"
tpu_vm ssh "$name" --worker=0 --command="$logs"
