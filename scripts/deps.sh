#!/bin/sh
# deps.sh build|check: installs the Debian or Ubuntu packages that are missing, for building or for all checks and tests.
# Says so and goes on where there is no apt, no permission, or no success: the build then names what it misses.
set -eu

what_for=${1:-check}

command -v cargo >/dev/null || {
	echo "deps: cargo was not found: install a Rust toolchain (1.88 or newer), for instance with rustup" >&2
	exit 1
}

# program or file that tells the package is there : package
wanted="
cc:gcc
/usr/include/stdio.h:libc6-dev
pkg-config:pkg-config
/usr/include/munge.h:libmunge-dev
pandoc:pandoc
"
if [ "$what_for" = check ]; then
	wanted="$wanted
	munged:munge
	/usr/include/jansson.h:libjansson-dev
	jq:jq
	prove:perl
	python3:python3
	pip3:python3-pip
	node:nodejs
	npm:npm
	/usr/share/sharness/sharness.sh:sharness
	setpriv:util-linux
	ps:procps
	openssl:openssl
	"
	for component in fmt:rustfmt clippy:clippy; do
		cargo "${component%:*}" --version >/dev/null 2>&1 ||
			echo "deps: cargo ${component%:*} does not run: install it with  rustup component add ${component#*:}" >&2
	done
fi
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

# go_on WHY: what is missing may be there by another name, or not be needed.
go_on() {
	echo "deps: warning: $1" >&2
	exit 0
}

command -v apt-get >/dev/null ||
	go_on "this is neither Debian nor Ubuntu: if the build fails, install the equivalents of$missing"
sudo=
if [ "$(id -u)" -ne 0 ]; then
	sudo="sudo -n"
	$sudo true 2>/dev/null || go_on "not root, and sudo asks for a password: run  apt-get install$missing"
fi
echo "deps: installing$missing"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
	cat "$log" >&2
	rm -f "$log"
	go_on "apt-get failed, see above; missing:$missing"
fi
rm -f "$log"
