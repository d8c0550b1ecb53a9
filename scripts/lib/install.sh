# The work of scripts/install-dom0 and scripts/install-guest, which source this: they set `me`, `parts`, `unit` and
# `check_machine`. Nothing is changed before everything was looked at.
# shellcheck shell=bash

top="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
bin="" root="" dry_run="" uninstall=""

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
}

refuse() {
    echo "$me: nothing was changed: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        --bin | --root)
            [ $# -ge 2 ] || { echo "$me: $1 needs a directory" >&2; exit 2; }
            [ "$1" = --bin ] && bin=$2 || root=$2
            shift 2
            ;;
        --dry-run) dry_run=1; shift ;;
        --uninstall) uninstall=1; shift ;;
        --help | -h) usage; exit 0 ;;
        *) echo "$me: what is $1? See --help" >&2; exit 2 ;;
    esac
done
root="${root%/}"
[ -z "$root" ] || [ -d "$root" ] || refuse "$root is no directory"

# A tree that is put together elsewhere is not this machine.
if [ -z "$root" ]; then
    [ "$(uname -sm)" = "Linux x86_64" ] || refuse "this is $(uname -sm), and not Linux on x86_64"
    [ -n "$dry_run" ] || [ "$(id -u)" = 0 ] || refuse "this must be run by root"
    [ -d /run/systemd/system ] || refuse "systemd does not run here, and the units are for systemd"
    check_machine
fi

manifest="$root/var/lib/twinbft-install/$unit.manifest"
hash_of() { sha256sum "$1" | cut -d' ' -f1; }
# The hash with which a file was installed; empty when it was not.
installed_hash() { [ ! -e "$manifest" ] || awk -v target="$1" '$2 == target { print $1 }' "$manifest"; }
do_it() { if [ -n "$dry_run" ]; then echo "would: $*"; else "$@"; fi; }

source_of() {
    case $1 in
        bin) echo "${bin:-$top/target/release}/$2" ;;
        *) echo "$top/$2" ;;
    esac
}

# Lines "KIND MODE SOURCE TARGET" of our parts.
wanted() {
    awk -v parts=" $parts " '!/^#/ && NF == 5 && index(parts, " " $1 " ") { print $2, $3, $4, $5 }' "$top/scripts/lib/files"
}

remove() {
    [ -e "$manifest" ] || { echo "$me: it is not installed here"; return; }
    local hash target kept=""
    if [ -z "$root" ]; then do_it systemctl disable --now "$unit.service"; fi
    while read -r hash target; do
        if [ ! -e "$root/$target" ]; then
            continue
        elif [ "$(hash_of "$root/$target")" = "$hash" ]; then
            do_it rm -f "$root/$target"
        else
            echo "kept, because it was changed: /$target"
            kept+="$hash $target"$'\n'
        fi
    done <"$manifest"
    if [ -z "$kept" ]; then
        do_it rm -f "$manifest"
    elif [ -z "$dry_run" ]; then
        # So that it is known as ours when it is installed again.
        printf '%s' "$kept" >"$manifest"
    fi
    if [ -z "$root" ]; then do_it systemctl daemon-reload; fi
    echo "$me: removed. The cluster's own files in /var/lib/twinbft are kept, and the user twinbft."
}

# Sets `plan`: lines "ACTION KIND MODE SOURCE TARGET".
look() {
    local kind mode name target source problems="" action earlier
    plan=""
    while read -r kind mode name target; do
        source=$(source_of "$kind" "$name")
        if [ ! -f "$source" ]; then
            problems+=$'\n'"  $source is missing: cargo build --locked --release --workspace --bins, or --bin DIR"
            continue
        fi
        earlier=$(installed_hash "$target")
        if [ ! -e "$root/$target" ] && [ ! -L "$root/$target" ]; then
            action=new
        elif [ ! -f "$root/$target" ] || [ -L "$root/$target" ]; then
            problems+=$'\n'"  /$target is no plain file"
            continue
        elif cmp -s "$source" "$root/$target"; then
            action=same
        elif [ "$(hash_of "$root/$target")" = "$earlier" ]; then
            action=update
        elif [ "$kind" = conf ] && [ -n "$earlier" ]; then
            action=keep
        else
            problems+=$'\n'"  /$target is there and not from here; is it another installation's, or a package's? Move it away"
            continue
        fi
        plan+="$action $kind $mode $source $target"$'\n'
    done < <(wanted)
    [ -n "$plan" ] || problems+=$'\n'"  scripts/lib/files names nothing for: $parts"
    [ -z "$problems" ] || refuse "these are in the way:$problems"
}

put() {
    local action kind mode source target hashes=""
    while read -r action kind mode source target; do
        [ -n "$action" ] || continue
        case $action in
            same) echo "unchanged: /$target" ;;
            keep) echo "kept as you have changed it: /$target" ;;
            new | update) do_it install -D -m "$mode" "$source" "$root/$target" ;;
        esac
        # Of what is yours the hash stays that of what we installed.
        if [ "$action" = keep ]; then
            hashes+="$(installed_hash "$target") $target"$'\n'
        else
            hashes+="$(hash_of "$source") $target"$'\n'
        fi
    done <<<"$plan"
    if [ -z "$dry_run" ]; then
        mkdir -p "$(dirname "$manifest")"
        printf '%s' "$hashes" >"$manifest"
    fi
}

settle() {
    [ -z "$root" ] || return 0
    local module
    do_it systemd-sysusers
    do_it install -d -m 700 -o twinbft -g twinbft /var/lib/twinbft
    do_it udevadm control --reload
    while read -r module; do
        do_it modprobe "$module"
    done < <(wanted | awk '$4 ~ /^etc\/modules-load.d\// { print $4 }' | sed 's,^,/,' | xargs -r cat 2>/dev/null | grep -v '^#')
    do_it udevadm trigger --subsystem-match=misc
    do_it systemctl daemon-reload
    do_it systemctl enable "$unit.service"
}

run() {
    if [ -n "$uninstall" ]; then
        remove
        return
    fi
    look
    put
    settle
    [ -n "$dry_run" ] || echo "$me: installed. Next: $next"
}
