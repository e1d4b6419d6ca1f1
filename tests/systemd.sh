#!/usr/bin/env bash
# The shipped unit under a real systemd, booted from a Debian root of its own: two
# instances share a store; one is killed whole, one is stopped whole, one is reloaded,
# all are stopped; and never do two run. Takes two minutes, needs root.
#
# `tests/setup.sh systemd` installs what this needs and makes the root.
# usage: tests/systemd.sh LOCUM BEATER
set -euo pipefail
locum=$(realpath "${1:?usage: tests/systemd.sh LOCUM BEATER}")
beater=$(realpath "${2:?usage: tests/systemd.sh LOCUM BEATER}")
here=$(dirname "$(realpath "$0")")
root=${LOCUM_TEST_ROOT:-/var/cache/locum-bed/root}
name=bed-$$-boot
work=$(mktemp -d "${TMPDIR:-/tmp}/boot.XXXXXX")
chmod 755 "$work"
group=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)/$name

say() { printf '%6.1f s  %s\n' "$(( ($(date +%s%3N) - began) ))e-3" "$*"; }
fail() {
    say "FAILED: $*"
    inside journalctl --no-pager -o short-precise -u 'locum@*' | tail -40
    exit 1
}
within() { # SECONDS WHAT COMMAND…
    local limit=$(( $(date +%s%3N) + $1 * 1000 )) what=$2
    shift 2
    until "$@"; do
        [ "$(date +%s%3N)" -lt "$limit" ] || fail "waited in vain for $what"
        sleep 0.05
    done
}
inside() { nsenter -t "$leader" -m -u -i -n -p -C -- "$@"; }
prop() { inside systemctl show -P "$2" "locum@$1"; }

# What of a unit lives, as pids of this side.
living() { find "$group/payload/system.slice" -path "*locum@$1.service*" -name cgroup.procs -exec cat {} + 2>/dev/null | grep -v '^0$' || true; }
is_gone() { local p; for p in "$@"; do [ ! -d "/proc/$p" ] || grep -qs '^State:.Z' "/proc/$p/status" || return 1; done; }
# Keeper and agent of a unit.
locums() { local p; for p in $(living "$1"); do case $(readlink "/proc/$p/exe") in */usr/bin/locum) echo "$p" ;; esac; done; }
# Who has beaten in the last 300 ms.
active() {
    awk -v now="$(awk '{ printf "%.0f", $1 * 1e9 }' /proc/uptime)" '$2 == "leader" && now - $1 < 3e8 { n = $4 } END { print n }' "$work/beats"
}
runs() { [ "$(active)" = "$1" ]; }

began=$(date +%s%3N)
mkdir "$group"
(
    echo 0 >"$group/cgroup.procs" # this subshell, then nspawn
    exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 BED_OF="$work" systemd-nspawn --quiet --directory="$root" \
        --volatile=overlay --register=no --keep-unit --private-network --machine="$name" \
        --bind="$work:/mnt/host" --console=pipe --boot systemd.unified_cgroup_hierarchy=1
) </dev/null >"$work/console" 2>&1 &
nspawn=$!
end() {
    if kill -0 "$nspawn" 2>/dev/null; then
        kill -TERM "$nspawn" || true
        for _ in $(seq 100); do kill -0 "$nspawn" 2>/dev/null || break; sleep 0.1; done
    fi
    echo 1 >"$group/cgroup.kill" 2>/dev/null || true
    sleep 0.3
    # nspawn also leaves an empty twin in the v1 hierarchy of a hybrid machine.
    find "$group" "/sys/fs/cgroup/systemd/$name" -depth -type d -exec rmdir {} ';' 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

leader=
booting() { leader=$(ps -o pid= --ppid "$nspawn" | tr -d ' ' | head -1) && [ -n "$leader" ] && [ "$(awk '/^NSpid/ { print $NF }' "/proc/$leader/status" 2>/dev/null)" = 1 ]; }
within 20 "systemd to start" booting
booted() { case $(inside systemctl is-system-running 2>/dev/null || true) in running | degraded) ;; *) return 1 ;; esac; }
within 60 "systemd to be up" booted
say "systemd is up"

mkdir "$work/etc"
touch "$work/beats"
cp "$locum" "$beater" "$work/"
cp "$here"/../packaging/locum@.service "$work/"
for node in a b; do
    cat >"$work/etc/$node.toml" <<T
service = "shop"
command = ["/usr/bin/beater", "--beats", "/mnt/host/beats", "--member"]
[process]
stop_timeout = "1s"
[restart]
delay = "100ms"
[lease]
store = "file:/var/lib/shop/record"
node = "$node"
T
done
inside sh -c 'install -d /etc/locum /var/lib/shop && install /mnt/host/locum /mnt/host/beater /usr/bin/ &&
    cp /mnt/host/etc/*.toml /etc/locum/ && cp /mnt/host/locum@.service /etc/systemd/system/ && systemctl daemon-reload'

inside systemctl start locum@a locum@b
[ "$(prop a ActiveState)-$(prop b ActiveState)" = active-active ] || fail "the units do not start"
say "both units are up: $(prop a StatusText) / $(prop b StatusText)"
someone() { [ -n "$(active)" ]; }
within 30 "somebody to run the command" someone
one=$(active)
two=$([ "$one" = a ] && echo b || echo a)
say "$one runs the command"

main=$(prop "$one" MainPID) tree=$(living "$one")
inside systemctl reload "locum@$one"
sleep 1
[ "$(prop "$one" MainPID)" = "$main" ] && [ "$(living "$one")" = "$tree" ] || fail "a reload changed what runs"
say "reloaded: the same processes run"

[ "$(echo "$tree" | wc -w)" = 5 ] || fail "not keeper, agent and three of the command: $tree"
[ "$(locums "$one" | wc -w)" = 2 ] || fail "not two processes of ours: $(locums "$one")"
# shellcheck disable=SC2046
kill -KILL $(locums "$one")
# shellcheck disable=SC2086
within 1 "nothing to be left of the killed unit" is_gone $tree
say "killed keeper and agent of $one at once: nothing is left"
sleep 0.5
within 30 "somebody to run the command again" someone
one=$(active)
two=$([ "$one" = a ] && echo b || echo a)
say "$one runs the command"

whole() { [ "$(living "$one" | wc -w)" -ge 5 ]; }
within 5 "the whole tree" whole
tree=$(living "$one")
# shellcheck disable=SC2046
kill -STOP $(locums "$one")
# shellcheck disable=SC2086
within 11 "the watchdog to end the stopped unit" is_gone $tree
inside journalctl --no-pager -o cat -u "locum@$one" | grep -qi watchdog || fail "no word of the watchdog"
say "stopped keeper and agent of $one at once: the watchdog has ended the unit"
sleep 0.5
within 30 "somebody to run the command again" someone
say "$(active) runs the command"

one=$(active)
two=$([ "$one" = a ] && echo b || echo a)
up() { [ "$(prop "$two" ActiveState)" = active ]; }
within 20 "the other one to be up" up
inside systemctl stop "locum@$one"
[ "$(prop "$one" Result)" = success ] || fail "the stop was no success: $(prop "$one" Result)"
[ -z "$(living "$one")" ] || fail "something is left after the stop"
within 5 "the other one to take over at once" runs "$two"
say "stopped $one in order: $two runs the command"
inside systemctl stop "locum@$two"
[ -z "$(living "$two")" ] || fail "something is left after the stop"

# No two trees overlapped: each one's last beat comes before the next one's first.
awk '{ k = $4 " " $5 " " $7; if (!(k in first)) { first[k] = $1; order[n++] = k } last[k] = $1 }
     END { for (i = 1; i < n; i++) if (first[order[i]] <= last[order[i-1]]) { print "two at once: " order[i-1] " and " order[i]; exit 1 }
           printf "%d lives, no two at once\n", n; exit n < 4 }' "$work/beats" || fail "see above"
inside systemctl poweroff
wait "$nspawn" || true
say "passed"
