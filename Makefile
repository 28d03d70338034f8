# make demo     the main job, step by step
# make check    every check and test
# make install  to PREFIX (and DESTDIR)
# make bench    what it costs
#
# A Flux on PATH, or under FLUX_PREFIX, is used where there is one.

PREFIX ?= /usr/local
PROFILE ?= release
CARGO ?= cargo
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
ifneq ($(FLUX_PREFIX),)
export FLUX_PREFIX
export PATH := $(FLUX_PREFIX)/bin:$(PATH)
export PKG_CONFIG_PATH := $(FLUX_PREFIX)/lib/pkgconfig:$(PKG_CONFIG_PATH)
endif

built = $(CARGO_TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# A tree as `make install` makes it, of what was built for the tests.
export WORKFLOW_TOKEN_STAGE = $(CARGO_TARGET_DIR)/stage
man = $(patsubst doc/%.md,%,$(wildcard doc/*.[1-8].md))

.PHONY: all deps build stage demo check bench install man clean
all: build

deps:
	@scripts/deps.sh

build: deps
	$(CARGO) build --workspace --profile $(PROFILE)

stage:
	@$(MAKE) --no-print-directory install PROFILE=dev PREFIX=$(WORKFLOW_TOKEN_STAGE) DESTDIR=

demo: stage
	@scripts/demo

check: deps
	@scripts/check

bench: build
	@$(MAKE) --no-print-directory install PREFIX=$(WORKFLOW_TOKEN_STAGE) DESTDIR= >/dev/null
	@bench/run

install: build man
	install -d $(DESTDIR)$(PREFIX)/lib/flux/job-manager/plugins $(DESTDIR)$(PREFIX)/lib/flux/shell/plugins
	install -d $(DESTDIR)$(PREFIX)/libexec/flux/cmd
	install -m 0755 $(built)/libjobtap_workflow_token.so $(DESTDIR)$(PREFIX)/lib/flux/job-manager/plugins/workflow-token.so
	install -m 0755 $(built)/libshell_workflow_token.so $(DESTDIR)$(PREFIX)/lib/flux/shell/plugins/workflow-token.so
	install -m 0755 $(built)/flux-workflow-token $(DESTDIR)$(PREFIX)/libexec/flux/cmd/flux-workflow-token
	@for page in $(man); do \
		dir=$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}; \
		install -d $$dir && install -m 0644 $(CARGO_TARGET_DIR)/man/$$page $$dir/$$page || exit 1; \
	done

man:
	@mkdir -p $(CARGO_TARGET_DIR)/man
	@for page in $(man); do \
		[ $(CARGO_TARGET_DIR)/man/$$page -nt doc/$$page.md ] || \
		pandoc -s -f markdown -t man doc/$$page.md -o $(CARGO_TARGET_DIR)/man/$$page || exit 1; \
	done

clean:
	$(CARGO) clean
