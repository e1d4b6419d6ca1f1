#!/bin/sh
# Looks whether a run of the tests left anything behind: a process, a network namespace,
# a cgroup, a mount, a folder, a socket. `clean-check.sh before FILE` notes what is there;
# `clean-check.sh after FILE` fails if there is more now. The run has to have a TMPDIR
# of its own, so that another one at the same time does not count.
#
# What it must never do: end or remove anything.
set -u
when=$1 noted=$2
base=${TMPDIR:-/tmp}/locum-bed

traces() {
    grep -lsz "^BED_OF=$base" /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do
        echo "process $pid $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline")"
    done
    # lb<pid of the run>-…, bed-<pid of the run>-…, locum-<pid namespace>-<pid of the keeper>-…
    ip netns list 2>/dev/null | sed -n 's/^lb\([0-9]*\)-.*/\1 &/p' | while read -r pid name _; do
        [ -d "/proc/$pid" ] || echo "namespace $name"
    done
    awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts | while read -r at; do
        find "$at" -type d \( -name 'locum-*-*-*' -o -name 'bed-*-*' \) 2>/dev/null
    done | while read -r dir; do
        grep -qs 'populated 1' "$dir/cgroup.events" || echo "cgroup $dir"
    done
    awk -v base="$base" 'index($2, base) == 1 { print "mount", $2 }' /proc/self/mounts
    find "$base" -mindepth 1 -maxdepth 1 2>/dev/null | sed 's/^/folder /'
    # What lives listens; a socket that nobody answers on was left.
    find /run/locum -type s 2>/dev/null | while read -r socket; do
        grep -q " $socket\$" /proc/net/unix || echo "socket $socket"
    done
}

if [ "$when" = before ]; then
    traces | sort >"$noted"
    exit 0
fi
# The janitor of a test run comes a moment after its end.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    left=$(traces | sort | comm -23 - "$noted")
    [ -n "$left" ] || exit 0
    sleep 1
done
printf 'the tests have left behind:\n%s\n' "$left" >&2
exit 1
