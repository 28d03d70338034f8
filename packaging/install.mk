# SPDX-License-Identifier: MIT OR Apache-2.0

# make install-PART  installs what one package contains: flux, slurm, agent, service or cli
#
# Flux is expected below PREFIX. `make install $(packaging/flux-paths)` asks pkg-config where it is instead.
# Programs and objects are stripped with PROFILE=release; STRIP= leaves that to the builder of a package.

DATADIR ?= $(PREFIX)/share
DOCDIR ?= $(DATADIR)/doc/workflow-token
FLUXLIBDIR ?= $(LIBDIR)/flux
FLUXLIBEXECDIR ?= $(LIBEXECDIR)/flux
FLUXCMDDIR ?= $(FLUXLIBEXECDIR)/cmd
FLUXHELPDIR ?= $(DATADIR)/flux/help.d
SLURMLIBDIR ?= $(LIBDIR)/slurm
SYSTEMDDIR ?= $(LIBDIR)/systemd/system
SYSUSERSDIR ?= $(LIBDIR)/sysusers.d
TMPFILESDIR ?= $(LIBDIR)/tmpfiles.d
BASHCOMPDIR ?= $(DATADIR)/bash-completion/completions
ZSHCOMPDIR ?= $(DATADIR)/zsh/site-functions
FISHCOMPDIR ?= $(DATADIR)/fish/vendor_completions.d
STRIP ?= $(if $(filter release,$(PROFILE)),-s)

parts = flux slurm agent service cli
.PHONY: $(addprefix install-,$(parts))
install: $(addprefix install-,$(parts))

# $(call install_program,BUILT,PATH) and $(call install_file,SOURCE,PATH): install one file, with its directories.
install_program = install -D $(STRIP) -m 0755 $(built)/$(1) $(DESTDIR)$(2)
install_file = install -D -m 0644 $(1) $(DESTDIR)$(2)
# $(call install_pages,PAGE…): those that were made, see man.
install_pages = @for page in $(1); do \
		[ ! -e $(CARGO_TARGET_DIR)/man/$$page ] || \
		install -D -m 0644 $(CARGO_TARGET_DIR)/man/$$page $(DESTDIR)$(MANDIR)/man$${page\#\#*.}/$$page || exit 1; \
	done
# $(call install_unit,NAME): with the directories of programs.
install_unit = @install -d $(DESTDIR)$(SYSTEMDDIR) && \
	sed 's|@LIBEXECDIR@|$(LIBEXECDIR)|; s|@SBINDIR@|$(SBINDIR)|' packaging/systemd/$(1) >$(DESTDIR)$(SYSTEMDDIR)/$(1) && \
	chmod 0644 $(DESTDIR)$(SYSTEMDDIR)/$(1)

install-flux: build man
	$(call install_program,libjobtap_workflow_token.so,$(FLUXLIBDIR)/job-manager/plugins/workflow-token.so)
	$(call install_program,libjobtap_dws.so,$(FLUXLIBDIR)/job-manager/plugins/dws-jobtap.so)
	$(call install_program,libjobtap_cray_pmi_bootstrap.so,$(FLUXLIBDIR)/job-manager/plugins/cray-pmi-bootstrap.so)
	$(call install_program,libshell_workflow_token.so,$(FLUXLIBDIR)/shell/plugins/workflow-token.so)
	$(call install_program,libshell_cray_pmi_bootstrap.so,$(FLUXLIBDIR)/shell/plugins/cray-pmi-bootstrap.so)
	$(call install_program,libshell_dws_environment.so,$(FLUXLIBDIR)/shell/plugins/dws_environment.so)
	$(call install_program,flux-workflow-token,$(FLUXCMDDIR)/flux-workflow-token)
	$(call install_file,plugin/cli/workflow_token.py,$(FLUXLIBEXECDIR)/cli/plugins/workflow_token.py)
	$(call install_file,packaging/flux/help.d/workflow-token.json,$(FLUXHELPDIR)/workflow-token.json)
	$(call install_file,packaging/examples/flux.toml,$(DOCDIR)/examples/flux.toml)
	$(call install_file,doc/kubernetes-rbac.yaml,$(DOCDIR)/examples/kubernetes-rbac.yaml)
	$(call install_pages,$(filter flux-jobtap-% flux-shell-%,$(man)))

install-slurm: build man
	$(call install_program,workflow-token-slurmctld,$(LIBEXECDIR)/workflow-token-slurmctld)
	$(call install_program,workflow-token-slurmstepd,$(LIBEXECDIR)/workflow-token-slurmstepd)
	$(call install_program,libslurm_spank.so,$(SLURMLIBDIR)/workflow-token-spank.so)
	$(call install_file,packaging/tmpfiles.d/workflow-token-slurm.conf,$(TMPFILESDIR)/workflow-token-slurm.conf)
	$(call install_file,packaging/examples/slurm.toml,$(DOCDIR)/examples/slurm.toml)
	$(call install_pages,workflow-token-slurm.7)

install-agent: build man
	$(call install_program,workflow-token-agent,$(LIBEXECDIR)/workflow-token-agent)
	$(call install_unit,workflow-token-agent-slurm.service)
	$(call install_file,packaging/tmpfiles.d/workflow-token-agent.conf,$(TMPFILESDIR)/workflow-token-agent.conf)
	$(call install_pages,workflow-token-agent.8)

install-service: build man
	$(call install_program,workflow-tokend,$(SBINDIR)/workflow-tokend)
	$(call install_unit,workflow-tokend.service)
	$(call install_unit,workflow-tokend.socket)
	$(call install_file,packaging/sysusers.d/workflow-tokend.conf,$(SYSUSERSDIR)/workflow-tokend.conf)
	$(call install_file,packaging/tmpfiles.d/workflow-tokend.conf,$(TMPFILESDIR)/workflow-tokend.conf)
	$(call install_file,packaging/examples/tokend.toml,$(DOCDIR)/examples/tokend.toml)
	$(call install_pages,$(filter workflow-tokend%,$(man)))

install-cli: build man
	$(call install_program,flux-workflow-token,$(BINDIR)/workflow-token)
	install -d $(DESTDIR)$(BASHCOMPDIR) $(DESTDIR)$(ZSHCOMPDIR) $(DESTDIR)$(FISHCOMPDIR)
	$(built)/flux-workflow-token completions bash >$(DESTDIR)$(BASHCOMPDIR)/workflow-token
	$(built)/flux-workflow-token completions zsh >$(DESTDIR)$(ZSHCOMPDIR)/_workflow-token
	$(built)/flux-workflow-token completions fish >$(DESTDIR)$(FISHCOMPDIR)/workflow-token.fish
	$(call install_pages,flux-workflow-token.1 flux-config-workflow-token.5 $(filter workflow-token-%.5,$(man)) workflow-token-errors.7)
	@[ ! -e $(DESTDIR)$(MANDIR)/man1/flux-workflow-token.1 ] || \
		echo '.so man1/flux-workflow-token.1' >$(DESTDIR)$(MANDIR)/man1/workflow-token.1
