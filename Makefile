# What people and packagers call. `make help` lists it.
.POSIX:
.SUFFIXES:

CARGO   = cargo
PREFIX  = /usr/local
BINDIR  = $(PREFIX)/bin
MANDIR  = $(PREFIX)/share/man
DOCDIR  = $(PREFIX)/share/doc/locum
UNITDIR = $(PREFIX)/lib/systemd/system
INSTALL = install

# How many tests run at a time: as many as the smallest machine has processors, so that a
# promised time is not judged by how long a test waited for one.
JOBS    = 2
# Seeds for the long simulation of `make soak`.
SEEDS   = 1000000
# The first of them; a failure names the one that replays it.
FIRST   = 0
# Which tests `make behaviour` runs: a part of their names.
T       =

.PHONY: help all demo test behaviour soak systemd bench install uninstall clean

help:
	@echo 'make all        build the release binary'
	@echo 'make demo       build, then show the main job in 20 seconds, without any server'
	@echo 'make test       formatting, lints, documentation, every test (installs what they need)'
	@echo 'make behaviour  the tests through the binary alone; T=name picks some'
	@echo 'make soak       the long simulation (SEEDS=$(SEEDS) FIRST=$(FIRST)), 300 agents, a real systemd'
	@echo 'make bench      figures, ours beside other tools (installs them)'
	@echo 'make install    to $$(DESTDIR)$$(PREFIX): binary, manual pages, unit, examples'
	@echo 'make clean      remove what was built'

all:
	$(CARGO) build --release --locked

demo:
	$(CARGO) build --release --locked --quiet --bin locum --example demo --example demo_service
	target/release/examples/demo

test:
	tests/setup.sh
	mandoc -T lint -W warning man/*.[1-8]
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps --quiet
	RUST_BACKTRACE=0 $(CARGO) test --locked --no-fail-fast -- --test-threads=$(JOBS)

behaviour:
	tests/setup.sh
	$(CARGO) build --locked --quiet --profile test --bin locum --example beater
	RUST_BACKTRACE=0 $(CARGO) test --locked --test behaviour -- --test-threads=$(JOBS) $(T)

soak:
	LOCUM_SIM_RUNS=$(SEEDS) LOCUM_SIM_FIRST=$(FIRST) \
	$(CARGO) test --locked --quiet --test simulation -- --nocapture many_bad_days
	BED_TIMES=300 $(CARGO) test --locked --test behaviour -- --test-threads=$(JOBS) flat
	$(MAKE) systemd

# The shipped unit under a real systemd: needs root, and makes a Debian root once.
systemd:
	tests/setup.sh systemd
	$(CARGO) build --locked --quiet --profile test --bin locum --example beater
	tests/systemd.sh target/debug/locum target/debug/examples/beater

bench:
	tests/setup.sh
	tests/bench/setup.sh
	$(CARGO) build --release --locked --quiet --bin locum --example beater --example figures
	target/release/examples/figures

# Builds nothing when the binary is there, so that it can run as root after a build as a user.
install:
	test -x target/release/locum || $(CARGO) build --release --locked
	$(INSTALL) -d '$(DESTDIR)$(BINDIR)'
	$(INSTALL) -m 755 target/release/locum '$(DESTDIR)$(BINDIR)/locum'
	for page in man/*.[1-8]; do \
	    test -f "$$page" || continue; \
	    dir='$(DESTDIR)$(MANDIR)'/man$${page##*.}; \
	    $(INSTALL) -d "$$dir" && $(INSTALL) -m 644 "$$page" "$$dir/" || exit 1; \
	done
	for unit in packaging/*.service; do \
	    test -f "$$unit" || continue; \
	    $(INSTALL) -d '$(DESTDIR)$(UNITDIR)' || exit 1; \
	    sed 's|/usr/bin/locum|$(BINDIR)/locum|g' "$$unit" >'$(DESTDIR)$(UNITDIR)'/"$${unit##*/}" || exit 1; \
	    chmod 644 '$(DESTDIR)$(UNITDIR)'/"$${unit##*/}" || exit 1; \
	done
	for file in etc/*.toml; do \
	    test -f "$$file" || continue; \
	    $(INSTALL) -d '$(DESTDIR)$(DOCDIR)/examples' && \
	    $(INSTALL) -m 644 "$$file" '$(DESTDIR)$(DOCDIR)/examples/' || exit 1; \
	done

uninstall:
	rm -f '$(DESTDIR)$(BINDIR)/locum'
	rm -f '$(DESTDIR)$(MANDIR)'/man?/locum.* '$(DESTDIR)$(UNITDIR)'/locum*.service
	rm -rf '$(DESTDIR)$(DOCDIR)'

clean:
	$(CARGO) clean
