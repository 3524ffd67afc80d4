#!/usr/bin/env bash
# Prints the path of the Python interpreter that a name such as `python3.12` stands for; fails if none runs.
# Where pyenv has several versions, its `python3.12` exists but refuses to run until that version is selected, so the
# version's own directory is tried as well.
set -euo pipefail

name=${1:?usage: interpreter.sh NAME}

candidates=("$name")
if [[ $name == python3.* ]] && command -v pyenv >/dev/null; then
    candidates+=("$(pyenv root)/versions/${name#python}"*"/bin/$name")
fi

for candidate in "${candidates[@]}"; do
    if path=$("$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null); then
        echo "$path"
        exit 0
    fi
done
echo "interpreter.sh: '$name' does not run, and no pyenv version provides it" >&2
exit 1
