#!/bin/sh
# Installs the Debian or Ubuntu packages that are missing: what building and testing needs. Says so and goes on where
# there is no apt, or no permission: the build then names what it misses.
set -eu

command -v cargo >/dev/null || {
	echo "deps: cargo was not found: install a Rust toolchain (1.88 or newer), for instance with rustup" >&2
	exit 1
}

# program or file that tells the package is there : package
wanted="
cc:gcc
pkg-config:pkg-config
munged:munge
/usr/include/munge.h:libmunge-dev
/usr/include/jansson.h:libjansson-dev
jq:jq
prove:perl
python3:python3
/usr/share/sharness/sharness.sh:sharness
setpriv:util-linux
ps:procps
openssl:openssl
pandoc:pandoc
"
# bindgen, and with it libclang, is needed only where the real headers are there to compare with.
if PKG_CONFIG_PATH="${FLUX_PREFIX:+$FLUX_PREFIX/lib/pkgconfig:}${PKG_CONFIG_PATH:-}" pkg-config --exists flux-core 2>/dev/null; then
	wanted="$wanted libclang:libclang-dev"
fi

missing=
for item in $wanted; do
	what=${item%%:*} package=${item#*:}
	case $what in
	/*) [ -e "$what" ] || missing="$missing $package" ;;
	libclang) ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1 || missing="$missing $package" ;;
	*) command -v "$what" >/dev/null || [ -x "/usr/sbin/$what" ] || missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

echo "deps: installing$missing"
if ! command -v apt-get >/dev/null; then
	echo "deps: this is neither Debian nor Ubuntu: install the equivalents of$missing" >&2
	exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
	sudo="sudo -n"
	$sudo true 2>/dev/null || {
		echo "deps: not root, and sudo asks for a password: run  apt-get install$missing" >&2
		exit 1
	}
fi
log=$(mktemp)
# Installing munge must not start a daemon, which a container may not be able to.
export DEBIAN_FRONTEND=noninteractive
if ! { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
	cat "$log" >&2
	echo "deps: apt-get failed, see above" >&2
	rm -f "$log"
	exit 1
fi
rm -f "$log"
