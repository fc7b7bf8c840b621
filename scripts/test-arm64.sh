#!/usr/bin/env bash
# Runs cargo for 64-bit Arm on an x86-64 Debian or Ubuntu machine, so that the NEON kernels are
# compiled and tested before they meet real hardware. Results count; speed under emulation does not.
#
#   sudo scripts/test-arm64.sh [CARGO-ARGS...]      default: test -p smelt-kernels
#
# The first call builds a small Debian system (compiler, cross linker, qemu; some minutes, 1.6 GB)
# in $SMELT_ARM64_ROOT, default /var/tmp/smelt-arm64; later calls reuse it.
set -euo pipefail

root=${SMELT_ARM64_ROOT:-/var/tmp/smelt-arm64}
target=aarch64-unknown-linux-gnu
repository=$(cd "$(dirname "$0")/.." && pwd)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
[ $# -gt 0 ] || set -- test -p smelt-kernels

build_root() {
  command -v mmdebstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq mmdebstrap; }
  local packages=(
    ca-certificates rustc cargo qemu-user             # run here
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross       # link there
    libstd-rust-dev:arm64 libgcc-s1:arm64             # the standard library and its runtime
  )
  rm -rf "$root"
  # The rename at the end makes an interrupted set-up start over.
  rm -rf "$root.partial"
  mmdebstrap --quiet --variant=apt --architectures=amd64,arm64 \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="$(IFS=,; echo "${packages[*]}")" forky "$root.partial"
  mv "$root.partial" "$root"
}

[ -x "$root/usr/bin/qemu-aarch64" ] || build_root

# The registry is shared with the Debian system, which then needs no network.
cd "$repository"
cargo fetch --quiet
mkdir -p "$root/smelt" "$root/cargo"
mount --bind "$repository" "$root/smelt"
trap 'umount "$root/smelt"' EXIT
mount --bind "$cargo_home" "$root/cargo"
trap 'umount "$root/smelt" "$root/cargo"' EXIT

settings=(
  PATH=/usr/bin:/bin HOME=/root CARGO_HOME=/cargo CARGO_NET_OFFLINE=true CARGO_TARGET_DIR=/target
  "CARGO_BUILD_TARGET=$target"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64 -L /"
)
chroot "$root" env -i "${settings[@]}" sh -c 'cd /smelt && exec cargo "$@"' sh "$@"
