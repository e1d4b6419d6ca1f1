#!/bin/sh
# Installs the tools that `make bench` measures beside ours, from the distribution's
# packages, without letting any of them start a service. A tool that cannot be had is
# left out of the table: this never fails.
set -u
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }
want=
for pair in tini:tini runsv:runit s6-supervise:s6 supervisord:supervisor monit:monit \
    etcd:etcd-server etcdctl:etcd-client; do
    have "${pair%%:*}" || want="$want ${pair#*:}"
done
[ -n "$want" ] || exit 0
if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "bench: not installed, so not measured:$want" >&2
    exit 0
fi
# Debian asks this file whether a package may start its service: 101 is no.
rule=/usr/sbin/policy-rc.d
made=
if [ ! -e "$rule" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$rule" && chmod 755 "$rule" && made=$rule
fi
trap '[ -z "$made" ] || rm -f "$made"' EXIT
apt-get update -q >/dev/null 2>&1
for package in $want; do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$package" </dev/null >/dev/null 2>&1 ||
        echo "bench: $package cannot be installed, so it is not measured" >&2
done
exit 0
