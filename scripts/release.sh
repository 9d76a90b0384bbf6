#!/usr/bin/env bash
# Makes the files of a release under target/release-VERSION. The workflow of a tag (.github/workflows/release.yml) calls it step by step, on a
# runner of each kind; on your machine it does everything that needs no network.
#
#   scripts/release.sh --dry-run [--binary FILE] [--image IMAGE]      every step for this machine, then the commands that publish, printed
#   scripts/release.sh STEP... [--tag TAG] [--image IMAGE] [--binary FILE] [--target TARGET]
#
#   check       Cargo.toml, Cargo.lock, the chart and the image of the manifests have one version; with --tag it is the tag's, and
#               CHANGELOG.md has a section for it
#   notes       notes.md: what CHANGELOG.md says of this version
#   archive     the binary for TARGET, static on Linux, with licence, readme, completions and manual pages, as httpserver-VERSION-TARGET.tar.gz
#   sbom        httpserver-VERSION-TARGET.cdx.json, CycloneDX
#   chart       httpserver-chart-VERSION.tgz, whose image is IMAGE
#   checksums   SHA256SUMS of all that is there
#
#   --target    default: this machine's
#   --binary    package this one instead of building it
#   --image     what the chart installs; default: httpserver, as in the repository
#   --tag       vVERSION
#
# The version is that of Cargo.toml. The same sources and the same binary give the same archives, byte for byte.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

tag="" image=httpserver binary="" target="" dry_run=no
parse "tag image binary target ..." dry-run "$@"
steps=("${arguments[@]}")
if [ $dry_run = yes ]; then
  [ ${#steps[@]} -eq 0 ] || usage_error "--dry-run takes every step: name none"
  steps=(check notes archive sbom chart checksums)
fi
[ ${#steps[@]} -gt 0 ] || usage_error "name a step, or --dry-run"
for step in "${steps[@]}"; do
  case $step in check | notes | archive | sbom | chart | checksums) ;; *) usage_error "unknown step: $step" ;; esac
done

cd "$top"
version=$(release_version)
out=$top/target/release-$version
mkdir -p "$out"
[ -z "$binary" ] || [ -x "$binary" ] || die "--binary $binary is no program"
case " ${steps[*]} " in *" archive "* | *" sbom "*) target=${target:-$(rustc -vV | sed -n 's/^host: //p')} ;; esac
# What is in the archives is as old as the last commit.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

# section NAME: what CHANGELOG.md has below the heading of that version
section() { awk -v want="## [$1]" 'index($0, "## [") == 1 {on = index($0, want) == 1; next} on' CHANGELOG.md; }

# pack FILE FOLDER: a tar.gz of a folder below $out, with nothing of this machine in it
pack() {
  local sorted=(--sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH")
  # macOS has a tar of its own.
  [[ $(tar --version 2>/dev/null) == *GNU* ]] || sorted=(--uid 0 --gid 0)
  tar -C "$out" "${sorted[@]}" -cf - "$2" | gzip -n9 >"$out/$1"
}

check() {
  local file said wrong=no
  # differs WHERE VERSION
  differs() { [ "$2" = "$version" ] || { say "$1 has $2, Cargo.toml $version"; wrong=yes; }; }
  differs Cargo.lock "$(awk '/^name = "httpserver"$/ {getline; gsub(/version = |"/, ""); print}' Cargo.lock)"
  differs "charts/httpserver/Chart.yaml, version" "$(sed -n 's/^version: //p' charts/httpserver/Chart.yaml)"
  differs "charts/httpserver/Chart.yaml, appVersion" "$(sed -n 's/^appVersion: //p' charts/httpserver/Chart.yaml)"
  while IFS=: read -r file said; do differs "$file" "$said"; done < <(grep -rEo '\bimage: httpserver:[^ ]+' k8s istio compose.yaml | sed 's/:image: httpserver:/:/' | sort -u)
  if [ -n "$tag" ]; then
    differs "the tag $tag" "${tag#v}"
    [ -n "$(section "$version")" ] || { say "CHANGELOG.md has no section [$version]: rename [Unreleased]"; wrong=yes; }
  fi
  [ $wrong = no ] || exit 1
  say "one version: $version"
}

notes() {
  local text
  text=$(section "$version")
  if [ -z "$text" ]; then
    say "CHANGELOG.md has no section [$version] yet: the notes are those of [Unreleased]"
    text=$(section Unreleased)
  fi
  [ -n "$text" ] || die "CHANGELOG.md says nothing of this version"
  printf '%s\n' "$text" >"$out/notes.md"
}

archive() {
  local name=httpserver-$version-$target built command flags
  built=$binary
  if [ -z "$built" ]; then
    # The flags of the image, so that both are the same program.
    case $target in *-linux-*) flags=$(sed -n 's/.*RUSTFLAGS="\([^"]*\)".*/\1/p' Dockerfile) ;; *) flags="" ;; esac
    REVISION=${REVISION:-$(git rev-parse --short=12 HEAD)} RUSTFLAGS="$flags --remap-path-prefix=$top=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
      cargo build --release --locked --bin httpserver --target "$target"
    built=target/$target/release/httpserver
  fi
  if [[ $target == *-linux-* ]] && ldd "$built" >/dev/null 2>&1; then
    [ $dry_run = yes ] || die "$built is not static"
    say "$built is not static: good for a dry run only"
  fi
  rm -rf "${out:?}/$name"
  mkdir -p "$out/$name/completions"
  cp "$built" "$out/$name/httpserver"
  cp LICENSE README.md CHANGELOG.md "$out/$name/"
  # A binary of another machine cannot say them.
  if "$built" completions bash >/dev/null 2>&1; then
    # The names by which each shell, and man, find them.
    "$built" completions bash >"$out/$name/completions/httpserver.bash"
    "$built" completions zsh >"$out/$name/completions/_httpserver"
    "$built" completions fish >"$out/$name/completions/httpserver.fish"
    mkdir "$out/$name/man"
    "$built" manpage >"$out/$name/man/httpserver.1"
    for command in $("$built" --help | awk '/^Commands:/ {on = 1; next} !NF {on = 0} on && $1 != "help" {print $1}'); do
      "$built" manpage "$command" >"$out/$name/man/httpserver-$command.1"
    done
  else
    say "$built does not run here: the archive is without completions and manual pages"
    rmdir "$out/$name/completions"
  fi
  pack "$name.tar.gz" "$name"
  rm -rf "${out:?}/$name"
}

sbom() { TARGET=$target scripts/sbom.sh >"$out/httpserver-$version-$target.cdx.json"; }

chart() {
  # Not by `helm package`, which writes the time of day into the archive; Helm reads this as well.
  rm -rf "$out/httpserver"
  # -L: some of its files are links into k8s/, which would lead nowhere from the archive.
  cp -RL charts/httpserver "$out/httpserver"
  sed -i.was "s#^  repository: httpserver\$#  repository: $image#" "$out/httpserver/values.yaml"
  rm "$out/httpserver/values.yaml.was"
  [ "$image" = httpserver ] || grep -qxF "  repository: $image" "$out/httpserver/values.yaml" || die "the image of the chart could not be set"
  pack "httpserver-chart-$version.tgz" httpserver
  rm -rf "$out/httpserver"
}

checksums() {
  local sum=(sha256sum)
  command -v sha256sum >/dev/null || sum=(shasum -a 256)
  (cd "$out" && rm -f SHA256SUMS && "${sum[@]}" httpserver-* >SHA256SUMS)
}

for step in "${steps[@]}"; do
  say "$step"
  "$step"
done
say "in ${out#"$top/"}:"
(cd "$out" && ls -l | awk 'NR > 1 {print "  " $5, $9}') >&2
[ $dry_run = yes ] || exit 0
[ "$image" != httpserver ] || image=ghcr.io/OWNER/httpserver
cat <<TEXT

not done here: it needs the network, or a runner of another kind; the workflow of the tag does it
  git tag --sign v$version && git push origin v$version
  on runners of their own: archive and sbom for x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu, aarch64-apple-darwin
  docker buildx build --platform linux/amd64 --push --output type=image,push-by-digest=true .      (and linux/arm64 on its runner)
  docker buildx imagetools create --tag $image:$version $image@sha256:...  $image@sha256:...
  cosign sign --yes $image@sha256:...
  cosign sign-blob --yes --bundle SHA256SUMS.sigstore.json SHA256SUMS
  helm push httpserver-chart-$version.tgz oci://${image%/*}/charts
  gh release create v$version --notes-file notes.md httpserver-* SHA256SUMS*
TEXT
