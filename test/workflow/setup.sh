#!/bin/bash
# Makes the Python environment of the workflow harness and prints its interpreter's path.
#
# The environment is named by this script's hash, so a changed pin makes a new one, and an existing one costs only a
# look. orquesta finds its evaluators and composers by entry points, so it has to be installed; its own pins are for
# Pythons long gone, hence --no-deps and the list below.
set -euo pipefail

python_version=3.11
packages=(
  orquesta==1.2.0
  networkx==2.8.8           # 3.x lost what orquesta 1.2.0 and its shim use
  yaql==3.2.0 pbr==7.1.3 python-dateutil==2.9.0.post0 six==1.17.0
  jinja2==3.1.6 MarkupSafe==3.0.3
  jsonschema==4.26.0 attrs==25.4.0 referencing==0.37.0 rpds-py==0.30.0 jsonschema-specifications==2025.9.1
  typing_extensions==4.15.0
  PyYAML==6.0.3 stevedore==5.6.0 ujson==5.11.0 chardet==5.2.0
  setuptools==75.8.0        # pbr asks for it, and venv's own may be anything
  eventlet==0.40.4 greenlet==3.3.2 dnspython==2.8.0 # the sensor container's patching, for test/sensor
)

hash=$(sha256sum "${BASH_SOURCE[0]}" | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/st2ha-workflow
home=$cache/$hash
if [[ -e $home/done ]]; then
  echo "$home/bin/python"
  exit
fi
say() { echo "workflow harness: $*" >&2; }

# Two set-ups at once (a test and a lab, say) must not build the same directory.
mkdir -p "$cache"
exec 9>"$cache/$hash.lock"
flock 9
if [[ -e $home/done ]]; then
  echo "$home/bin/python"
  exit
fi

usable() {
  "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (${python_version/./, }))" 2>/dev/null
}
find_python() {
  local candidate
  for candidate in "python$python_version" "/usr/bin/python$python_version" python3 /usr/bin/python3; do
    candidate=$(command -v "$candidate") || continue
    # A pyenv shim that points nowhere is found, but does not run.
    usable "$candidate" && echo "$candidate" && return
  done
  return 1
}
if ! python=$(find_python); then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    say "needs Python $python_version with venv: install python$python_version-venv"
    exit 1
  fi
  say "installing python3-venv"
  apt-get update >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv >&2
  python=$(find_python) || { say "python3-venv is installed, but there is no Python $python_version"; exit 1; }
fi

say "installing orquesta into $home"
rm -rf "$home"
"$python" -m venv "$home"
"$home/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps "${packages[@]}" >&2
touch "$home/done"
echo "$home/bin/python"
