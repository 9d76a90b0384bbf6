#!/usr/bin/env bash
# Prints a token that lets its bearer enter a swim lane (istio/security/lane-needs-jwt.yaml).
#
#   TOKEN=$(scripts/lane-token.sh --apply)
#
#   --apply     also apply that file to the cluster, with the public half of the key
#   --dir       where the key pair is kept, made at the first call; default certs, ignored by git
#   --minutes   how long the token is valid, default 60
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

dir=certs minutes=60 apply=no
parse "dir minutes" "apply" "$@"
whole minutes "$minutes"
need openssl
umask 077
mkdir -p "$dir"
key=$dir/lane.key
[ -s "$key" ] || openssl genrsa -out "$key" 2048 2>/dev/null

# base64url without padding, of stdin
base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

if [ $apply = yes ]; then
  need kubectl
  # The modulus comes as hexadecimal digits; base64url wants its bytes.
  hex=$(openssl rsa -in "$key" -noout -modulus 2>/dev/null | cut -d= -f2)
  # shellcheck disable=SC2001
  modulus=$(printf %b "$(sed "s/../\\\\x&/g" <<<"$hex")" | base64url)
  jwks='{"keys":[{"kty":"RSA","alg":"RS256","use":"sig","kid":"lane","e":"AQAB","n":"'$modulus'"}]}'
  sed "s|^\( *jwks: \).*|\1'$jwks'|" "$top/istio/security/lane-needs-jwt.yaml" | kubectl apply -f - >&2
fi

now=$(date +%s)
head=$(printf '{"alg":"RS256","typ":"JWT","kid":"lane"}' | base64url)
body=$(printf '{"iss":"lanes@cncamp.io","sub":"tester","iat":%s,"exp":%s}' "$now" $((now + 60 * minutes)) | base64url)
signature=$(printf '%s.%s' "$head" "$body" | openssl dgst -sha256 -sign "$key" -binary | base64url)
printf '%s.%s.%s\n' "$head" "$body" "$signature"
