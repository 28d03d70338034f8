# SPDX-License-Identifier: MIT OR Apache-2.0
"""Makes doc/performance.md of the rows that were measured: report.py ROWS. Also updates bounds.toml, and reports on standard error which
of its entries need attention, unless the page is one for a test (BENCH_REPORT)."""

import json
import os
import sys
import textwrap

import bounds

HEAD = """# The cost of workflow tokens

This page answers the first questions of operators: what do workflow tokens cost the scheduler, jobs and services? [Method](#method)
describes the machine and how the figures were measured. `make bench` measures them again.
"""

# The questions of operators. An answer is shown if all its figures were measured. A figure is named by its key, and its parts are: ours,
# that of the peer, and the result of the comparison.
SUMMARY = [
    (
        "Your scheduler",
        [
            (
                "Flux: jobs a second, 200 jobs at once on one node",
                "{flux-rate.ours}; {flux-rate.peer} ({flux-rate.result})",
            ),
            (
                "Flux: the same with 400 jobs, and their job shells on other nodes",
                "{flux-rate-elsewhere.ours}; {flux-rate-elsewhere.peer} ({flux-rate-elsewhere.result})",
            ),
            (
                "Flux: processor time of the job manager's thread for a delivery, 200 jobs at once",
                "median {flux-reactor-median.result}; 99 % at most {flux-reactor-p99.result}; longest callback {flux-callback.result}",
            ),
            (
                "Flux: the same with 100,000 deliveries at once, on the Flux simulator",
                "median {in-flight-100000.ours}",
            ),
            (
                "Flux: jobs that get their token if 10,000 jobs start at once, on the Flux simulator",
                "{burst-delivered.ours} ({burst-delivered.result})",
            ),
            ("Flux: loading the plugin with 100,000 jobs in the queue, on the Flux simulator", "{queue-100000.ours}"),
            ("Flux: processor time of rank 0 for a job of 16 nodes", "{nodes-16.ours}; {nodes-16.peer}"),
            (
                "Flux: munged hangs",
                "longest callback {munged-stopped.result}. 20 other jobs take {munged-stopped-jobs.ours}; {munged-stopped-jobs.peer}",
            ),
            (
                "Slurm: throughput of batch jobs",
                "{slurm-rate-bare.ours}; {slurm-rate-bare.peer} ({slurm-rate-bare.result})",
            ),
            (
                "Slurm: requests of nodes that the agent answers",
                "{slurm-requests.ours}; memory of the agent afterwards: {slurm-memory.ours}",
            ),
        ],
    ),
    (
        "Your jobs",
        [
            ("Flux: wait for the token before the start, one job at a time", "{flux-prolog.result}"),
            ("Flux: the same, 200 jobs at once", "{flux-prolog-many.ours}"),
            ("Flux: start of a job shell", "{flux-shell.ours}; {flux-shell.peer}"),
            ("Flux: 1,000 jobs with tokens from Kubernetes, until all have their token", "{kubernetes-all.ours}"),
            (
                "Flux: wait of a rabbit job before the start",
                "{rabbit-prolog.ours}; with the plugins of flux-coral2 {rabbit-prolog.peer}",
            ),
            (
                "Slurm: duration of `srun true`",
                "{slurm-srun-bare.ours}; {slurm-srun-bare.peer}; {slurm-srun-empty.peer}",
            ),
        ],
    ),
    (
        "Your services",
        [
            (
                "A service in Rust: tokens verified a second on one core",
                "EdDSA {eddsa-verify.ours}; ES256 {es256-verify.ours}; RS256 {rs256-verify.ours}; HS256 {hs256-verify.ours}",
            ),
            (
                "The issuer: tokens signed a second on one core",
                "EdDSA {eddsa-issue.ours}; ES256 {es256-issue.ours}; RS256 {rs256-issue.ours}; HS256 {hs256-issue.ours}",
            ),
            (
                "The token service: requests a second on one core",
                "forward authentication {tokend-forward.ours}; introspection {tokend-introspect.ours}; minting by exchange {tokend-exchange.ours}",
            ),
        ],
    ),
]

METHOD = """
## Method

`make bench` measures each figure and its peer in the same run, in turns, and compares medians. A ratio above 1 is in favor of this product.
For times, the table shows the difference. Each figure varies from run to run, by several percent on a machine of two cores.
Schedulers, nodes, agent, munged and jobs share the cores of the machine. The Flux simulator is a process that stands in for job manager, KVS
and job shell, and loads the same plugins.
"""

COLUMNS = ["figure", "with workflow tokens", "for comparison", "result"]


class Figure:
    def __init__(self, row):
        self.ours, self.peer = row["ours"], row["peer"].removeprefix("theirs ")
        self.result = row["result"]


class Figures(dict):
    """Figures by key, or by name if they have none, for templates such as {flux-rate.ours}."""

    def answer(self, template):
        try:
            return template.format_map(self)
        except KeyError:
            return None


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def summary(figures, sections):
    for title, questions in SUMMARY:
        yield f"## {title}\n"
        answers = [(question, figures.answer(template)) for question, template in questions]
        answers = [(question, answer) for question, answer in answers if answer]
        yield from table(["question", "answer"], answers) if answers else ["Not measured in this run.\n"]
    if not any("token service" in title.lower() for title in sections):
        yield "The token service was not measured in this run.\n"


def paragraph(text):
    return textwrap.fill(text, 140, break_long_words=False, break_on_hyphens=False) + "\n"


def verdict(measured):
    """How many bounds are met."""
    found = bounds.load()
    met = [bounds.is_met(found[name], bounds.worst(found[name], values)) for name, values in measured.items()]
    return paragraph(
        f"The tables below show all figures. The project has set {len(met)} bounds for them, and this run met {sum(met)}. "
        "[bench/bounds.toml](../bench/bounds.toml) lists the bounds, and for each missed bound the last value and the reason."
    )


def page(rows):
    figures, measured = Figures(), {}
    for row in (row for row in rows if "figure" in row):
        figures[row["key"] or row["figure"]] = Figure(row)
        if row["value"]:
            name, value = row["value"]
            measured.setdefault(name, []).append(value)
    yield HEAD
    yield from summary(figures, [row["section"] for row in rows if "section" in row])
    yield METHOD.lstrip("\n")
    yield from table(["measured on", ""], [(row["fact"], row["value"]) for row in rows if "fact" in row])
    yield verdict(measured)
    begin = [n for n, row in enumerate(rows) if "section" in row]
    for first, after in zip(begin, [*begin[1:], len(rows)]):
        yield f"## {rows[first]['section']}\n"
        if rows[first]["about"]:
            yield paragraph(rows[first]["about"])
        shown = (row for row in rows[first + 1 : after] if "figure" in row)
        yield from table(COLUMNS, [[row[part] for part in ("figure", "ours", "peer", "result")] for row in shown])
    if "BENCH_REPORT" not in os.environ:
        for line in bounds.update(measured):
            print(f"bench/bounds.toml: {line}", file=sys.stderr)


def main(path):
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    print("\n".join(page(rows)).rstrip())


main(sys.argv[1])
