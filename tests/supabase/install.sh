#!/bin/sh
# The Supabase-compatible server of the tests, below .venv. Where it cannot be installed they are skipped, and say so.
set -u
here=$(cd "$(dirname "$0")" && pwd)
there=$here/../../.venv/supabase-lite
[ -f "$there/installed.json" ] && cmp -s "$here/package.json" "$there/installed.json" && exit 0
command -v npm >/dev/null && command -v node >/dev/null || { echo "no npm and node to install the Supabase server with"; exit 0; }
mkdir -p "$there"
cp "$here/package.json" "$there/package.json"
rm -f "$there/installed.json"
if npm install --prefix "$there" --no-audit --no-fund --ignore-scripts --loglevel=error; then
    cp "$here/package.json" "$there/installed.json"
else
    echo "the Supabase server could not be installed"
fi
exit 0
