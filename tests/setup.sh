#!/bin/sh
# Installs what the tests need, from the distribution's own packages. Safe to run
# again at any time: it looks first, and does nothing when everything is there.
# With the argument `systemd` also what tests/systemd.sh needs: a Debian root to boot.
#
# What it must never do: leave a database server of the distribution running, or
# stop one that was there before.
set -eu

say() { printf 'setup: %s\n' "$*" >&2; }

pg_bin() { # the newest server's programs
    ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -t/ -k5 -n -r | while read -r d; do
        [ -x "$d/initdb" ] && [ -x "$d/pg_basebackup" ] && { echo "$d"; break; }
    done
}

have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

missing() { # program package …: the packages whose program is not there
    while [ $# -gt 0 ]; do
        have "$1" || printf '%s ' "$2"
        shift 2
    done
}

want=$(missing ip iproute2 nft nftables openssl openssl pgbouncer pgbouncer python3 python3 \
    mandoc mandoc ps procps setpriv util-linux nsenter util-linux script bsdutils bindfs bindfs cc gcc)
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || want="$want faketime"
if [ -z "$(pg_bin)" ] || ! have psql; then
    # Debian 12 has 15; elsewhere the release's own.
    if apt-cache show postgresql-15 >/dev/null 2>&1; then
        want="$want postgresql-15 postgresql-client-15"
    else
        want="$want postgresql postgresql-client"
    fi
fi
[ "${1:-}" != systemd ] ||
    want="$want$(missing systemd-nspawn systemd-container debootstrap debootstrap)"

root=${LOCUM_TEST_ROOT:-/var/cache/locum-bed/root}
make_root() {
    [ "${1:-}" = systemd ] && [ ! -e "$root/sbin/init" ] || return 0
    say "making a Debian root in $root"
    [ "$(id -u)" = 0 ] || { say "please run as root"; return 77; }
    # The mirror that this machine uses already.
    mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "bookworm" { print $2; exit }')
    mkdir -p "$root" && chmod 755 "${root%/*}" "$root"
    log=$(mktemp)
    PATH="$PATH:/usr/sbin:/sbin" debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,procps \
        bookworm "$root.new" ${mirror:+"$mirror"} >"$log" 2>&1 || {
        say "cannot make the root:"; tail -5 "$log" >&2; rm -rf "$root.new" "$log"; return 69
    }
    echo testhost >"$root.new/etc/hostname"
    : >"$root.new/etc/machine-id" # a fresh one at each boot
    rm -rf "$root.new"/var/cache/apt/archives/*.deb "$root.new"/var/lib/apt/lists/* "$root" "$log"
    mv "$root.new" "$root"
}
[ -n "${want% }" ] || { make_root "${1:-}"; exit; }

if ! have apt-get; then
    say "please install: $want(this is not a Debian-like system, so that cannot be done here)"
    exit 69
fi
sudo=
if [ "$(id -u)" != 0 ]; then
    if ! have sudo || ! sudo -n true 2>/dev/null; then
        say "please run as root: apt-get install $want"
        exit 77
    fi
    sudo=sudo
fi

say "installing $want"
export DEBIAN_FRONTEND=noninteractive
# Debian makes and starts a cluster `main` when the server is installed: not here.
made=
conf=/etc/postgresql-common/createcluster.conf
if [ ! -e "$conf" ] && ! ls /etc/postgresql/*/main >/dev/null 2>&1; then
    $sudo mkdir -p "${conf%/*}"
    echo 'create_main_cluster = false' | $sudo tee "$conf" >/dev/null
    made=$conf
fi
bouncer_was=$(have pgbouncer && echo yes || echo no)
# shellcheck disable=SC2086
install() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o Dpkg::Options::=--force-confold $want </dev/null >"$log" 2>&1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! $sudo apt-get update -q </dev/null >"$log" 2>&1; then
    say "cannot refresh the package lists:"; tail -5 "$log" >&2
fi
if ! install; then
    say "cannot install $want:"; tail -20 "$log" >&2
    exit 69
fi
# The package's own pgbouncer is of no use here; one that was there before is not ours.
if [ "$bouncer_was" = no ] && [ -x /etc/init.d/pgbouncer ]; then
    $sudo /etc/init.d/pgbouncer stop >/dev/null 2>&1 || true
fi
[ -z "$made" ] || say "wrote $made, so that no database server runs by itself"
[ -n "$(pg_bin)" ] || { say "there is still no PostgreSQL server under /usr/lib/postgresql"; exit 69; }
make_root "${1:-}"
say "done"
