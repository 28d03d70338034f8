# SPDX-License-Identifier: MIT OR Apache-2.0

import os

from spack.package import *


class WorkflowToken(MakefilePackage):
    """Delivers JSON Web Tokens to jobs of Flux and Slurm.

    Each job that a rule matches finds its token in its environment, and
    nobody else can read it.
    """

    # `scripts/packages source .` makes the tarball in the directory where Spack runs.
    manual_download = True

    license("MIT OR Apache-2.0")

    version("0.1.0")

    variant("flux", default=True, description="Install the plugins for Flux")
    variant("slurm", default=True, description="Install the plugin and programs for Slurm")
    variant("service", default=True, description="Install the token service")

    depends_on("c", type="build")
    depends_on("gmake", type="build")
    depends_on("pandoc", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("rust@1.88:", type="build")

    depends_on("munge")
    # Plugins take their symbols from the process that loads them; the build needs no headers.
    depends_on("flux-core@0.66:", type="run", when="+flux")
    depends_on("slurm@21.08:", type="run", when="+slurm")

    conflicts("platform=darwin", msg="it uses interfaces of Linux")

    def url_for_version(self, version):
        return f"file://{os.getcwd()}/workflow-token-{version}.tar.gz"

    def setup_build_environment(self, env):
        env.set("MUNGE_PATH", self.spec["munge"].prefix.lib)

    # Cargo fetches the crates that Cargo.lock names.
    def build(self, spec, prefix):
        make("build", "man", "CARGO=cargo --locked")

    def install(self, spec, prefix):
        parts = ["agent", "cli"]
        parts += [part for part in ("flux", "slurm", "service") if spec.satisfies(f"+{part}")]
        for part in parts:
            make(f"install-{part}", "CARGO=cargo --locked", f"PREFIX={prefix}")

    def setup_run_environment(self, env):
        if self.spec.satisfies("+flux"):
            env.prepend_path("FLUX_EXEC_PATH", self.prefix.libexec.flux.cmd)

    @run_after("install")
    @on_package_attributes(run_tests=True)
    def check_install(self):
        Executable(self.prefix.bin.join("workflow-token"))("--version")
