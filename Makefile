# SPDX-License-Identifier: MIT OR Apache-2.0

# make demo        shows the delivery of a token to a job, step by step
# make demo-login  starts the token service with a development provider, to try in a browser
# make check       checks format and lints, builds, and runs the tests
# make check-all   runs longer checks: soak, counted instructions, dependencies, Miri, fuzzing, sanitizers
# make install     installs into PREFIX (and DESTDIR); BINDIR, SBINDIR, LIBDIR, LIBEXECDIR and MANDIR default to bin,
#                  sbin, lib, libexec and share/man in PREFIX; packaging/install.mk lists the other directories, and the parts
#                  that packages contain
# make doc         builds the documentation as a book in HTML, and checks its links
# make bench       measures the cost
# make soak        runs randomized fault injection for DURATION seconds (600); SEED repeats an earlier run
# make sanitize    runs tests under Miri and sanitizers, with a nightly toolchain
# make sbom        writes a bill of materials for each program and plugin
#
# These targets use a Flux on PATH or under FLUX_PREFIX, if there is one.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
SBINDIR ?= $(PREFIX)/sbin
LIBDIR ?= $(PREFIX)/lib
LIBEXECDIR ?= $(PREFIX)/libexec
MANDIR ?= $(PREFIX)/share/man
PROFILE ?= release
CARGO ?= cargo
# The packages to build: by default only the product. Tests and benchmarks need more.
PACKAGES ?=
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
# FLUX_PREFIX, and the tools that deps.sh provides. PATH gets each once, even if make runs make: cargo builds tests again if PATH changes.
before = $(if $(filter $1,$(subst :, ,$2)),$2,$1:$2)
export PATH := $(call before,$(CARGO_TARGET_DIR)/tools/bin,$(PATH))
ifneq ($(FLUX_PREFIX),)
export FLUX_PREFIX
export PATH := $(call before,$(FLUX_PREFIX)/bin,$(PATH))
export PKG_CONFIG_PATH := $(call before,$(FLUX_PREFIX)/lib/pkgconfig,$(PKG_CONFIG_PATH))
endif

built = $(CARGO_TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# The tree that `make install` makes from the build for the tests.
export WORKFLOW_TOKEN_STAGE = $(CARGO_TARGET_DIR)/stage
install_to_stage = $(MAKE) --no-print-directory install DESTDIR= PREFIX=$(WORKFLOW_TOKEN_STAGE) \
	BINDIR=$(WORKFLOW_TOKEN_STAGE)/bin SBINDIR=$(WORKFLOW_TOKEN_STAGE)/sbin LIBDIR=$(WORKFLOW_TOKEN_STAGE)/lib LIBEXECDIR=$(WORKFLOW_TOKEN_STAGE)/libexec MANDIR=$(WORKFLOW_TOKEN_STAGE)/share/man
man = $(patsubst doc/%.md,%,$(wildcard doc/*.[1-8].md))

# apt-get takes a lock.
.NOTPARALLEL:
.PHONY: all deps build stage demo demo-login check check-all doc bench soak sanitize sbom install man clean
all: build

# The dependencies of all these targets, which are more than those of a build.
deps:
	@scripts/deps.sh check

# Names what it misses, and installs nothing.
build:
	@CARGO="$(firstword $(CARGO))" scripts/needed
	$(CARGO) build $(PACKAGES) --profile $(PROFILE)

stage:
	@$(install_to_stage) PROFILE=dev >/dev/null

demo:
	@scripts/deps.sh demo
	@scripts/demo
	@scripts/demo-slurm

demo-login:
	@scripts/deps.sh demo-login
	@$(MAKE) --no-print-directory stage
	@scripts/demo-login

check: deps
	@scripts/check fast

check-all: deps
	@scripts/check slow

doc:
	@scripts/book

bench: export PYTHONDONTWRITEBYTECODE = 1
bench:
	@python3 bench/inputs.py settings
	@scripts/deps.sh check
	@$(install_to_stage) PACKAGES=--workspace >/dev/null
	@bench/run

DURATION ?= 600
soak: export WORKFLOW_TOKEN_SOAK = $(DURATION)
soak: deps
	@$(MAKE) --no-print-directory stage PACKAGES=--workspace
	@$(if $(SEED),export WORKFLOW_TOKEN_SEED=$(SEED);) \
	if command -v flux >/dev/null; then \
		t/t1200-soak.t && t/t1205-soak-rabbits.t; \
	else \
		scripts/build-faults && $(CARGO) test --quiet --test soak -- --nocapture; \
	fi

sanitize: deps
	@for what in miri address thread; do \
		scripts/sanitize $$what || [ $$? -eq 77 ] || exit 1; \
	done

sbom:
	@scripts/sbom

include packaging/install.mk

# After the build, so that both are made in turn.
man: build
	@mkdir -p $(CARGO_TARGET_DIR)/man
	@command -v pandoc >/dev/null || { echo "man: no manual pages are made, since pandoc was not found" >&2; exit 0; }; \
	for page in $(man); do \
		[ $(CARGO_TARGET_DIR)/man/$$page -nt doc/$$page.md ] || \
		pandoc -s -f markdown -t man doc/$$page.md -o $(CARGO_TARGET_DIR)/man/$$page || exit 1; \
	done

clean:
	$(CARGO) clean
