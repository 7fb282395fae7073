#!/bin/sh
# A Chromium for the browser tests. Where it cannot be installed they are skipped, and say so.
set -u
command -v chromium >/dev/null && exit 0
command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || { echo "no chromium, and no right to install it"; exit 0; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null || echo "chromium could not be installed"
exit 0
