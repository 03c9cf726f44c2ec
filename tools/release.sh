#!/bin/bash
# release.sh pack: the pack as a release has it, into dist/: HEAD, with programs for linux/amd64 and linux/arm64 in bin/
# and without requirements.txt, which asks for nothing but the toolchain. As a directory and a .tgz of it.
#
# release.sh release VERSION: the same as a commit with the tag vVERSION, on no branch, for "st2 pack install URL=VERSION".
# What it makes depends on HEAD and the Go version only: made again elsewhere, commit and binaries are equal.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
die() { echo "release: $*" >&2; exit 1; }

version=$(sed -n 's/^version: *//p' pack.yaml)
if [ "$1" = release ]; then
  [ "${2:-}" = "$version" ] || die "VERSION is '${2:-}', and pack.yaml says $version: they must be the same"
  git diff-index --quiet HEAD || die "there are changes that are not committed"
  grep -q "^## $version\b" CHANGES.md || die "CHANGES.md has no heading '## $version'"
  ! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || die "there is a tag v$version already"
fi

git diff-index --quiet HEAD || echo "release: changes that are not committed are left out" >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
git archive HEAD | tar -x -C "$work/src"
for arch in amd64 arm64; do
  GOOS=linux GOARCH=$arch GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOWORK=off make --silent -C "$work/src" build
done

export GIT_INDEX_FILE=$work/index
git read-tree HEAD
git update-index --force-remove requirements.txt
for binary in "$work"/src/bin/*; do
  git update-index --add --cacheinfo "100755,$(git hash-object -w "$binary"),bin/${binary##*/}"
done
# The dates of HEAD: neither the commit's name nor the files' times depend on when it was made.
GIT_AUTHOR_DATE=$(git log -1 --format=%cI) GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
export GIT_AUTHOR_DATE GIT_COMMITTER_DATE
commit=$(git commit-tree "$(git write-tree)" -p HEAD -m "Release $version, built with $(go env GOVERSION)")

case $1 in
release)
  git tag -a -m "st2ha $version" "v$version" "$commit"
  echo "made the tag v$version on $commit: git push origin v$version"
  ;;
pack)
  rm -rf dist && mkdir dist
  git archive --format=tar.gz --prefix=st2ha/ -o "dist/st2ha-$version.tgz" "$commit"
  tar -x -C dist -f "dist/st2ha-$version.tgz"
  ls -d dist/*
  ;;
*) die "pack, or release VERSION" ;;
esac
