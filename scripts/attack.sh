#!/usr/bin/env bash
# Attacks the release binary in a memory cgroup of its own, as a container of the manifests has it: 32 kinds over HTTP/1, HTTP/2 and TLS, from
# next hops and from collectors, each beside a client that behaves (tests/e2e/attack.rs). Everything stays on loopback. Needs root for the cgroup.
#
#   scripts/attack.sh [--memory MIB] [--files N] [--share SHARE] [--only NAME]
#
#   --memory MIB    the limit of the cgroup (default 128)
#   --files N       the limit on open files of the hop (default: the one of this shell)
#   --share SHARE   of the connections that each attack has (default 1)
#   --only NAME     those whose name has this part
#
#   HTTPSERVER      the binary (default: target/release/httpserver, built where it is not)
#   RELEASE=yes     build the attackers with optimisations, too
#
# Exit: 0 all held, 1 one did not, 2 something needed is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
memory=128 files="" share=1 only=""
parse "memory files share only" "" "$@"
whole memory "$memory"
[ -z "$files" ] || whole files "$files"
[[ $share =~ ^(1([.]0*)?|0?[.][0-9]*[1-9][0-9]*)$ ]] || usage_error "--share is above 0 and at most 1, not: $share"
need cargo
find_httpserver

# Version 1 of cgroups has a tree for each controller, version 2 one for all.
name=httpserver-attack-$$
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  cgroup=/sys/fs/cgroup/$name
  echo +memory >/sys/fs/cgroup/cgroup.subtree_control || true
else
  cgroup=/sys/fs/cgroup/memory/$name
fi
mkdir "$cgroup" 2>/dev/null || { printf '%s: cannot make %s: it takes root, and a cgroup file system that can be written\n' "${0##*/}" "$cgroup" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"; rmdir "$cgroup" 2>/dev/null || true' EXIT
# A root without the memory controller, which version 1 may have, would leave the attack without its limit.
[ -f "$cgroup/memory.max" ] || [ -f "$cgroup/memory.limit_in_bytes" ] || { rmdir "$cgroup"; printf '%s: %s has no memory controller\n' "${0##*/}" "$cgroup" >&2; exit 2; }
if [ -f "$cgroup/memory.max" ]; then
  echo "${memory}M" >"$cgroup/memory.max"
  echo 0 >"$cgroup/memory.swap.max" 2>/dev/null || true
else
  echo "${memory}M" >"$cgroup/memory.limit_in_bytes"
  # Sockets are counted when they have a limit, here one that is never met: version 2 counts them with everything else.
  echo 64G >"$cgroup/memory.kmem.tcp.limit_in_bytes" 2>/dev/null || printf '%s: the memory of sockets is not counted here\n' "${0##*/}" >&2
fi

# What the test starts as the hop: puts itself into the cgroup, and becomes it.
cat >"$work/httpserver" <<END
#!/bin/sh
echo \$\$ >$cgroup/cgroup.procs
${files:+ulimit -n $files}
exec $HTTPSERVER "\$@"
END
chmod +x "$work/httpserver"
# The attackers have as many open files as they may.
ulimit -n "$(ulimit -Hn)"
cd "$top"
HTTPSERVER=$work/httpserver ATTACK_CGROUP=$cgroup ATTACK_SHARE=$share ATTACK_ONLY=$only \
  cargo test --quiet --locked ${RELEASE:+--release} --test e2e -- --ignored --nocapture attack::
