# What the scripts of scripts/units-e2e in dom0 and in the guests have in common.
# shellcheck shell=bash

# check TEXT COMMAND...: a line of the result.
check() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "RESULT PASS $me: $text"
    else
        echo "RESULT FAIL $me: $text: $(tail -n 4 <<<"$said" | tr '\n' ';')"
    fi
}

# await SECONDS COMMAND...: looks again and again until the command succeeds.
await() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt "$end" ] || return 1
        sleep 1
    done
}

property() { systemctl show --value --property "$2" "$1"; }

is() { [ "$(property "$1" "$2")" = "$3" ] || { echo "$2=$(property "$1" "$2"), not $3"; return 1; }; }

# What the unit promises, of a unit that runs.
check_unit() {
    local unit=$1 watchdog=$2 exposure
    check "systemctl start $unit: Type=notify, and it has said that it is ready" is "$unit" ActiveState active
    check "$unit runs as the user twinbft" user_is "$unit" twinbft
    check "$unit has a watchdog of $watchdog" is "$unit" WatchdogUSec "$watchdog"
    exposure="$(systemd-analyze security --no-pager "$unit" | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')"
    check "systemd-analyze security says $exposure of the running $unit, below 2.0" below "$exposure" 2.0
}

user_is() { [ "$(stat -c %U "/proc/$(property "$1" MainPID)")" = "$2" ]; }

below() { [ -n "$1" ] && awk "BEGIN { exit !($1 < $2) }"; }

restarted() { [ "$(property "$1" NRestarts)" -ge "$2" ] && [ "$(property "$1" ActiveState)" = active ]; }
