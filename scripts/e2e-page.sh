#!/usr/bin/env bash
# Tries the demo's page in a real Chromium, as a person would.
#
#   scripts/e2e-page.sh [--install] [--everywhere] [--pictures] [NAME]
#
#   --install    get what is missing: Debian's chromium, nodejs and npm, two npm packages into target/e2e/page
#   --everywhere every feature at 1280, 800 and 390 pixels, in light and in dark each; without it a feature is tried at each width once, in light and
#                dark by turns
#   --pictures   instead of the tests, make the pictures of the README in docs/images, each below 150 KB
#   NAME         only the tests whose name contains it
#
#   HTTPSERVER   the binary to test; default: target/release/httpserver
#   CHROMIUM     a browser to use instead of the one in PATH
#
# Exit: 0 every test passed, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/e2e/lib.sh
. "$(dirname "$0")/e2e/lib.sh"

pictures=no everywhere=no
parse ... "install everywhere pictures" "$@"
provide node npm chromium page_packages httpserver

cd "$top"
HTTPSERVER=$(realpath "$HTTPSERVER")
export MODULES=$page_modules EVERYWHERE=$everywhere
if [ $pictures = yes ]; then
  mkdir -p docs/images
  exec node tests/page/screenshots.mjs docs/images
fi
# try [NAME]: all tests, or those whose name contains NAME; the output is shown and kept
try() { node --test --test-concurrency=1 --test-reporter=tap ${1:+"--test-name-pattern=$1"} tests/page/page.test.mjs | tee "$e2e/page.tap"; }
if try "${arguments[@]}"; then exit; fi
# A browser on a busy machine is late in ways that no condition names. Each test that failed has one more try, alone, and that is said.
mapfile -t failed < <(sed -n 's/^ \+not ok [0-9]* - //p' "$e2e/page.tap")
if [ ${#failed[@]} -eq 0 ] || [ ${#failed[@]} -gt 2 ]; then exit 1; fi
for name in "${failed[@]}"; do
  try "$name" || exit 1
  say "passed only at the second try: $name"
done
