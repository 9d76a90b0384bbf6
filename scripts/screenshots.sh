#!/usr/bin/env bash
# Makes the two pictures of the demo's page that the README shows, in docs/images/, each below 150 KB.
#
#   scripts/screenshots.sh             if something is missing, list it and exit 2
#   scripts/screenshots.sh --install   get what is missing first (see scripts/e2e-page.sh)
#
# HTTPSERVER names a binary; without it the debug build of this tree is made and used.
set -euo pipefail
cd "$(dirname "$0")/.."
HTTPSERVER=${HTTPSERVER:-} scripts/e2e-page.sh ${1:+"$1"} --only-look
if [ -z "${HTTPSERVER:-}" ]; then
  cargo build --quiet
  HTTPSERVER=${CARGO_TARGET_DIR:-target}/debug/httpserver
fi
HTTPSERVER=$(realpath "$HTTPSERVER")
export HTTPSERVER
export MODULES="$PWD/target/e2e/page/node_modules"
mkdir -p docs/images
node tests/page/screenshots.mjs docs/images
