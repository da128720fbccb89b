# Firekeep's commands. Each installs what it lacks (or says what to run), and builds outside the checkout, in
# ~/.cache/firekeep or $FIREKEEP_CACHE.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run build test test-full sim bench bench-compare mutants fuzz deb fmt deny clean-cache

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 } /^#   / { sub(/^#   /, ""); print "                      " $$0 }' Makefile

run: ## Back up a PDS: HOST=https://pds.example.com, or without HOST one made up on this machine
#   HOST=URL   the PDS to follow      ARCHIVE=file:///folder or s3://bucket/prefix
#   DATA=DIR   the mirror's folder (./firekeep-data)    ARGS="…" more options of `firekeep run`
	@HOST='$(HOST)' ARCHIVE='$(ARCHIVE)' DATA='$(DATA)' ARGS='$(ARGS)' exec scripts/run

build: ## The program, optimised; says where it lies
	@exec scripts/build

test: ## Every check and every test; ends with `N passed, N failed`
#   SUITES="tidy unit"   only these
	@exec scripts/test $(SUITES)

test-full: ## The same in the long forms; a broken run is taken up; the table goes to docs/test-full.md
	@exec scripts/test --full $(SUITES)

sim: ## The simulation over many seeds; a broken run is taken up; the table goes to docs/sim.md
#   SEEDS=10000    so many, FIRST=1 from this one on    SEED=123   only this one, with its trace
	@SEEDS='$(SEEDS)' FIRST='$(FIRST)' SEED='$(SEED)' exec scripts/sim

bench: ## How fast it is, beside what this machine can do; some minutes (docs/performance.md)
#   ROWS="commits repo"   only these    SCALE=10   larger sizes    JSON=FILE   where the figures go
	@SCALE='$(SCALE)' JSON='$(JSON)' exec scripts/bench $(ROWS)

bench-compare: ## Two of those side by side: OLD=before.json NEW=after.json
	@exec scripts/bench compare '$(OLD)' '$(NEW)'

mutants: ## Puts known bugs in, one at a time: the test named for each must fail; writes docs/mutants.md
#   MUTANTS="skip-cid-hash …"   only these
	@exec scripts/mutants $(MUTANTS)

fuzz: ## libFuzzer on what reads bytes of strangers
#   T=60                        seconds for each target    FUZZ="frame car"   only these
	@T='$(T)' exec scripts/fuzz $(FUZZ)

deb: ## A Debian package for this machine's architecture, with service, manual pages and completions
	@exec scripts/deb

fmt: ## Format the source
	@cargo fmt

deny: ## Licences and banned crates, if cargo-deny is there
	@if cargo deny --version >/dev/null 2>&1; then exec cargo deny check bans licenses sources; \
	else echo "cargo-deny is not installed, so nothing was checked; run: cargo install --locked cargo-deny"; fi

clean-cache: ## Delete what was built for this project (not the sandbox's parts, nor the compiled RocksDB)
	@exec scripts/clean-cache
