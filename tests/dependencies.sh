#!/bin/sh
# Watches what the program is made of: every crate is somebody's code that runs as root.
# A new one is argued for in the commit that adds it, and that commit moves the number.
set -eu
most=117

# Build scripts and procedural macros are part of the tree, development tools are not.
crates=$(cargo tree --locked -e normal --prefix none --no-dedupe | awk '{print $1, $2}' | sort -u)
count=$(printf '%s\n' "$crates" | wc -l)
if [ "$count" -gt "$most" ]; then
    echo "the program is made of $count crates, and $most are argued for" >&2
    exit 1
fi
# One TLS stack, nothing that needs cmake, no second runtime.
if foreign=$(printf '%s\n' "$crates" | grep -E '^(openssl|openssl-sys|native-tls|aws-lc-.*|async-std|smol|hyper) '); then
    echo "the program must not be made of: $foreign" >&2
    exit 1
fi
echo "$count crates"
