#!/bin/sh
# A container engine, and what makes a base image where no registry can be reached. Where they cannot be installed the
# container tests are skipped, and say so.
set -u
missing=
command -v dockerd >/dev/null || missing="$missing docker.io"
command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
[ -z "$missing" ] && exit 0
command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || { echo "without$missing, and no right to install it"; exit 0; }
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    echo "$missing could not be installed"
exit 0
