# shellcheck shell=bash
# What the scripts share. Source it; it does nothing by itself.

# The repository's top, wherever the script was called from.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export top

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
# usage_error TEXT: a wrong call, as opposed to something that failed
usage_error() { printf '%s: %s (see --help)\n' "${0##*/}" "$*" >&2; exit 2; }

# help FILE: prints the comment at the head of a script, which is its help text
help() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$1"; }

# parse NAMES FLAGS ARGUMENT...: sets the variable of each option: of --NAME VALUE or --NAME=VALUE to its value, of --FLAG to yes (a - in it
# becomes a _). What is no option goes into the array arguments where NAMES has "...".
arguments=()
parse() {
  local names=" $1 " flags=" $2 " option
  shift 2
  while [ $# -gt 0 ]; do
    option=${1#--}
    case $1 in
      -h | --help) help "$0"; exit 0 ;;
      --*=*)
        [[ $flags != *" ${option%%=*} "* ]] || usage_error "${1%%=*} takes no value"
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue ;;
      -*)
        if [[ $flags == *" $option "* ]]; then
          printf -v "${option//-/_}" yes
        else
          [[ $names == *" $option "* ]] || usage_error "unknown option: $1"
          [ $# -ge 2 ] || usage_error "$1 needs a value"
          printf -v "$option" %s "$2"
          shift
        fi ;;
      *) [[ $names == *" ... "* ]] || usage_error "unknown argument: $1"; arguments+=("$1") ;;
    esac
    shift
  done
}

# whole NAME VALUE: the value of that option is a whole number above 0
whole() { [[ $2 =~ ^[1-9][0-9]*$ && ${#2} -lt 10 ]] || usage_error "--$1 is a whole number above 0, not: $2"; }

# cluster_answers: or die, with what kubectl says and the context that was asked
cluster_answers() {
  local said
  said=$(kubectl --request-timeout=10s get --raw /readyz 2>&1) ||
    die "no answer from the cluster of kubectl's context '$(kubectl config current-context 2>/dev/null || echo none)': $(tail -n 1 <<<"$said")"
}

# need TOOL...: all that are missing are named at once, then exit 2
need() {
  local tool missing=()
  for tool; do command -v "$tool" >/dev/null 2>&1 || missing+=("$tool"); done
  [ ${#missing[@]} -eq 0 ] || { printf '%s: not found: %s\n' "${0##*/}" "${missing[*]}" >&2; exit 2; }
}

# The version of the release, which is the tag of the image: Cargo.toml says it.
release_version() { sed -n 's/^version = "\(.*\)"$/\1/p' "$top/Cargo.toml" | head -n 1; }

# eventually SECONDS TEXT COMMAND...: until the command succeeds, or die after that long
eventually() {
  local limit=$1 what=$2 end
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { printf '%s: %s: not after %s s\n' "${0##*/}" "$what" "$limit" >&2; return 1; }
    sleep 0.3
  done
}

# free_ports COUNT: different TCP ports of loopback that nobody listens on now, for servers that cannot pick one themselves. They are below
# the range that the system gives to connections and to whoever asks for port 0, and below Kubernetes' node ports.
free_ports() {
  local port count=$1 ports=()
  while read -r port; do
    ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue
    ports+=("$port")
    ((--count)) || break
  done < <(shuf -i 20000-29999)
  echo "${ports[*]}"
}

# claim TEXT COMMAND...: one line of the table of claims; the run goes on, `claims_end` says how it went
# What cannot be shown here goes to not_run, a line each with the reason.
claims_failed=0 claims_total=0 claims_table="" not_run=()
claim() {
  local text=$1 out
  shift
  claims_total=$((claims_total + 1))
  if out=$("$@" 2>&1); then
    printf '  ok    %s\n' "$text"
    claims_table+="| $text | ok${out:+: $(tail -n 1 <<<"$out")} |"$'\n'
  else
    claims_failed=$((claims_failed + 1))
    printf '  FAIL  %s\n          %s\n' "$text" "${out//$'\n'/$'\n'          }"
    claims_table+="| $text | **failed** |"$'\n'
  fi
}
# claims_end: what could not be run here, the table, and exit 1 if a claim failed
claims_end() {
  [ ${#not_run[@]} -eq 0 ] || { printf '\nnot run here:\n'; printf '  %s\n' "${not_run[@]}"; }
  printf '\n| claim | result |\n|---|---|\n%s\n%s claims, %s failed' "$claims_table" "$claims_total" "$claims_failed"
  # Whoever reads the last line alone must not take it for everything.
  [ ${#not_run[@]} -eq 0 ] || printf '; %s not run here, listed above the table' "${#not_run[@]}"
  echo
  [ $claims_failed -eq 0 ]
}

# is WANTED ACTUAL: prints it, or what was wanted and what came
is() { [ "$1" = "$2" ] || { printf 'wanted: %s\ngot:    %s\n' "$1" "$2"; return 1; }; echo "$2"; }

# py EXPRESSION [ARGUMENT...]: of the JSON on stdin, called r; hops(r) is the chain of a reply, flat
py() {
  python3 -c '
import json, sys
def hops(r):
    return [r] + [h for u in r["upstreams"] if u["reply"] for h in hops(u["reply"])]
r = json.load(sys.stdin)
print(eval(sys.argv[1]))' "$@"
}

# find_httpserver: sets HTTPSERVER, unless it is set, to the release binary of this tree, which is built where there is none
find_httpserver() {
  [ -z "${HTTPSERVER:-}" ] || return 0
  HTTPSERVER=$top/target/release/httpserver
  [ -x "$HTTPSERVER" ] || (cd "$top" && cargo build --release --locked)
}

# find_envoy: sets ENVOY, unless it is set, to the one of the Python package that scripts/e2e.sh --install gets; false where it is not
envoy_python=$top/target/venv-envoy/bin/python
find_envoy() {
  [ -z "${ENVOY:-}" ] || return 0
  [ -x "$envoy_python" ] || return 1
  ENVOY=$("$envoy_python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')
}
