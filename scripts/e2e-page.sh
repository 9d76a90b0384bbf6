#!/usr/bin/env bash
# Tries the demo's page in a real Chromium, as a person would.
#
#   scripts/e2e-page.sh             run; if something is missing, list it and exit 2
#   scripts/e2e-page.sh --install   get what is missing first: Debian's chromium, two npm packages into target/e2e/page
#   scripts/e2e-page.sh --missing   only list what is missing
#   scripts/e2e-page.sh [--install] NAME   only the tests whose name contains NAME
#
# HTTPSERVER names a binary to test; without it the debug build of this tree is made and used. CHROMIUM names a browser.
set -euo pipefail
cd "$(dirname "$0")/.."

playwright=1.65.1
axe=4.14.1
modules=target/e2e/page
install=false only_missing=false
case ${1:-} in
  -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  --install) install=true; shift ;;
  --missing) only_missing=true; shift ;;
esac

chromium() { [ -n "${CHROMIUM:-}" ] && [ -x "$CHROMIUM" ] || command -v chromium >/dev/null; }
has() { [ -f "$modules/node_modules/$1/package.json" ] && grep -q "\"version\": \"$2\"" "$modules/node_modules/$1/package.json"; }

missing=()
command -v node >/dev/null || missing+=("node (20 or later)")
command -v npm >/dev/null || missing+=("npm")
if $install && [ ${#missing[@]} -eq 0 ]; then
  if ! chromium; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
  fi
  if ! has playwright-core "$playwright" || ! has axe-core "$axe"; then
    mkdir -p "$modules"
    [ -f "$modules/package.json" ] || echo '{"private": true}' >"$modules/package.json"
    npm install --prefix "$modules" --no-audit --no-fund --loglevel error --save-exact "playwright-core@$playwright" "axe-core@$axe"
  fi
fi
chromium || missing+=("chromium (Debian's package chromium)")
has playwright-core "$playwright" || missing+=("playwright-core $playwright (npm)")
has axe-core "$axe" || missing+=("axe-core $axe (npm)")
if $only_missing; then
  [ ${#missing[@]} -eq 0 ] || printf '%s\n' "${missing[@]}"
  exit 0
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "missing, --install gets what can be installed:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  exit 2
fi

# For scripts/screenshots.sh, which needs the same things.
if [ "${1:-}" = --only-look ]; then exit 0; fi

if [ -z "${HTTPSERVER:-}" ]; then
  cargo build --quiet
  HTTPSERVER=${CARGO_TARGET_DIR:-target}/debug/httpserver
fi
HTTPSERVER=$(realpath "$HTTPSERVER")
export HTTPSERVER
export MODULES="$PWD/$modules/node_modules"
# try [NAME]: all tests, or those whose name contains NAME; what they say is shown and kept
said=$modules/said.tap
try() { node --test --test-concurrency=1 --test-reporter=tap ${1:+--test-name-pattern="$1"} tests/page/page.test.mjs | tee "$said"; }
if try "$@"; then exit; fi
# A browser on a busy machine is late in ways that no condition names. Each test that failed has one more try, alone, and that is said.
mapfile -t failed < <(sed -n 's/^not ok [0-9]* - //p' "$said")
if [ ${#failed[@]} -eq 0 ] || [ ${#failed[@]} -gt 2 ]; then exit 1; fi
for name in "${failed[@]}"; do
  try "$name" || exit 1
  echo "e2e-page.sh: passed only at the second try: $name" >&2
done
