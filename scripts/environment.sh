# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test: makes .venv in the checkout on first use, with the versions of scripts/requirements.txt.
# Sets $root and $python. PYTHON=/path/to/python3.12 chooses the interpreter. Safe to interrupt: the next start goes on.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
log=$venv/install.log
torch=$(grep '^torch==' "$root/scripts/requirements.txt") # on every pip line, as a guard against a second one

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# What the environment was made from: with other pins, or in a moved checkout, it is brought up to date.
fingerprint() {
    cat "$root/scripts/requirements.txt" "$root/scripts/environment.sh" "$root/pyproject.toml" | cksum
    printf '%s\n' "$root"
}

# Whether the environment's interpreter is the one that was asked for; any will do where none was.
is_wanted() {
    local which='import sys; print(sys.base_prefix, sys.version)'
    [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -c "$which" 2>/dev/null)" = "$("$python" -c "$which" 2>/dev/null)" ]
}

pins() { sed -n "s/^# $1: //p" "$root/scripts/requirements.txt"; }

pip_install() {
    "$python" -m pip install --disable-pip-version-check "$@" >>"$log" 2>&1
}

must_install() {
    pip_install "$@" && return
    tail -n 15 "$log" >&2
    die "pip install failed, its whole output is in $log; run this again to go on from here"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || die "PYTHON=$PYTHON: takes a Python 3.11 or newer"
        printf '%s\n' "$PYTHON"
        return
    fi
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3 python3.14 python; do
        if is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python $0"
}

make_venv() {
    local chosen
    chosen=$(choose_python) || exit 1
    if is_wanted && "$python" -m pip --version >/dev/null 2>&1; then
        return # an interrupted installation: go on with it
    fi
    say "Making $venv with $("$chosen" --version)."
    "$chosen" -m venv --clear "$venv" || die "$chosen -m venv failed; on Debian and Ubuntu, install the package python3-venv"
}

# The CPU build where there is no NVIDIA GPU: on Linux, PyTorch's own index has it, PyPI has only CUDA builds. Whoever has told pip
# where wheels come from is asked first. Sets $torch_source, the options that found it.
torch_source=()
install_torch() {
    local cpu_index=(--index-url https://download.pytorch.org/whl/cpu) configured
    configured=$("$python" -m pip config list 2>/dev/null | grep -E 'index-url|find-links' || true)
    if nvidia-smi >/dev/null 2>&1; then
        say "1/4 $torch for CUDA (some gigabytes)"
        must_install "$torch"
    elif [ "$(uname -s)" != Linux ]; then
        say "1/4 $torch"
        must_install "$torch"
    else
        say "1/4 $torch for CPU (some 200 MB)"
        if [ -n "$configured" ] && pip_install "$torch"; then
            return
        elif pip_install "$torch" "${cpu_index[@]}"; then
            torch_source=("${cpu_index[@]}")
        else
            must_install "$torch"
        fi
    fi
}

# The first torchvision of the list that can be imported beside this torch; mmalign works without one, CLIP rewards do not.
install_torchvision() {
    local vision
    say "3/4 torchvision, and what needs it"
    for vision in $(pins vision); do
        if pip_install --no-deps "$torch" "$vision" ${torch_source[@]+"${torch_source[@]}"} && "$python" -c 'import torchvision' >>"$log" 2>&1; then
            # shellcheck disable=SC2046 # a word per package
            must_install --no-deps "$torch" $(pins no-deps)
            return
        fi
    done
    "$python" -m pip uninstall -y torchvision >>"$log" 2>&1 || true
    say "    none works beside this torch, going on without; rewards that need open_clip will say so"
}

install_all() {
    local started=$SECONDS
    say "Setting up mmalign's environment in $venv (once, a few minutes; pip's output goes to $log)."
    make_venv
    install_torch
    say "2/4 diffusers, transformers and the rest of scripts/requirements.txt"
    must_install "$torch" -r "$root/scripts/requirements.txt"
    install_torchvision
    say "4/4 mmalign itself, from this checkout"
    must_install --no-deps --no-build-isolation "$torch" --editable "$root"
    fingerprint >"$venv/stamp.part" && mv "$venv/stamp.part" "$venv/stamp"
    say "Done in $((SECONDS - started)) s."
}

if ! is_wanted || [ "$(fingerprint)" != "$(cat "$venv/stamp" 2>/dev/null)" ]; then
    install_all
fi

# torchvision 0.16.2 beside a CPU torch cannot read image files, says so at every start, and is not asked to
export PYTHONWARNINGS="ignore:Failed to load image Python extension${PYTHONWARNINGS:+,$PYTHONWARNINGS}"
