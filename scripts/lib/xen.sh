# What scripts/xen-e2e and scripts/units-e2e have in common, which source this: they set `me`, `top` and `keep`. Debian's packages
# unpacked, the programs built, images, clusters, a boot, and what came out.
# shellcheck shell=bash

e2e="$top/xen/e2e"
cache="${XEN_E2E_CACHE:-$HOME/.cache/twinbft-xen}"
seconds="${XEN_E2E_SECONDS:-1200}"
root="$cache/root"
libs="$root/usr/lib/x86_64-linux-gnu"
target="${CARGO_TARGET_DIR:-$top/target}/debug"
bin="$cache/bin"
PATH="$PATH:/usr/sbin:/sbin"

fail() {
    echo "scripts/$me: $*" >&2
    exit 2
}

# need_tools PROGRAM:PACKAGE...: installs what is missing, where that is allowed.
need_tools() {
    local missing="" tool
    for tool in "$@"; do
        command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool#*:}"
    done
    if [ -n "$missing" ]; then
        [ "$(id -u)" = 0 ] || fail "these are missing; install them first:$missing"
        echo "Installing$missing ..." >&2
        # shellcheck disable=SC2086
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
            fail "cannot install$missing"
    fi
}

# Packages unpacked, programs built.
prepare() {
    need_tools qemu-system-x86_64:qemu-system-x86 cpio:cpio xz:xz-utils dpkg-deb:dpkg python3:python3 gcc:gcc \
        mke2fs:e2fsprogs strip:binutils
    command -v cargo >/dev/null || fail "there is no cargo: install Rust from https://rustup.rs"
    mkdir -p "$cache/debs"
    exec 9>"$cache/lock"
    flock -n 9 || fail "another run uses $cache (set XEN_E2E_CACHE to another directory)"
    if [ -z "$keep" ] || [ ! -e "$cache/unpacked-2" ]; then unpack; fi
    build
}

newest() { apt-cache depends "$1" | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1; }
deb() { ls -t "$cache/debs/$1"_*.deb | head -1; }
unpack_kernel() {
    dpkg-deb --fsys-tarfile "$(deb "$1")" |
        tar -x -C "$2" --wildcards './boot/vmlinuz*' './lib/modules/*/kernel/drivers/xen/*' \
            './lib/modules/*/kernel/drivers/block/*' './lib/modules/*/kernel/drivers/net/xen-*'
}
# Of the kernels only the image and the drivers that are needed.
unpack() {
    # The mark first: a run that is cut off here leaves no tree that is taken for a whole one.
    local kernel guest_kernel package packages
    rm -f "$cache"/unpacked*
    rm -rf "$root" "$cache/kernel" "$cache/guest-kernel"
    mkdir -p "$root" "$cache/kernel" "$cache/guest-kernel"
    [ -n "$(newest linux-image-amd64)" ] || { [ "$(id -u)" = 0 ] && apt-get update -qq; } || true
    kernel="$(newest linux-image-amd64)"
    guest_kernel="$(newest linux-image-cloud-amd64)"
    [ -n "$kernel" ] && [ -n "$guest_kernel" ] || fail "apt knows no kernel packages: run apt-get update first"
    packages="xen-hypervisor-4.17-amd64 xen-utils-4.17 xenstore-utils libxen-dev libxenmisc4.17 libxenstore4 libxencall1 \
        libxenevtchn1 libxengnttab1 libxenforeignmemory1 libxendevicemodel1 libxenhypfs1 libxentoolcore1 \
        libxentoollog1 libyajl2 busybox-static libuuid1 zlib1g liblzma5 libzstd1 libgcc-s1 libc6"
    for package in $packages "$kernel" "$guest_kernel"; do
        compgen -G "$cache/debs/${package}_*.deb" >/dev/null ||
            (cd "$cache/debs" && apt-get -qq download "$package" 2>/dev/null) || fail "cannot download $package"
    done
    for package in $packages; do dpkg-deb -x "$(deb "$package")" "$root"; done
    unpack_kernel "$kernel" "$cache/kernel"
    unpack_kernel "$guest_kernel" "$cache/guest-kernel"
    gunzip -c "$root"/boot/xen-4.17-amd64.gz >"$cache/xen"
    python3 "$e2e/extract-kernel" "$cache"/kernel/boot/vmlinuz-* "$cache/vmlinux"
    python3 "$e2e/extract-kernel" "$cache"/guest-kernel/boot/vmlinuz-* "$cache/guest-vmlinux"
    touch "$cache/unpacked-2"
}

build() {
    echo "Building ..." >&2
    (cd "$top" && cargo build --locked --quiet --workspace --bins --examples)
    local program
    rm -rf "$bin"
    mkdir -p "$bin"
    for program in postbox-broker twinbft-replica twinbft examples/xen-e2e-dom0 examples/xen-e2e-guest; do
        strip -o "$bin/$(basename "$program")" "$target/$program"
    done
    gcc -O2 -Wall -Werror -I"$root/usr/include" "$e2e/vchan.c" -o "$bin/xen-e2e-vchan" -L"$libs" \
        -Wl,-rpath-link,"$libs" -lxenvchan
}

# Every shared library that the programs need, from the unpacked packages where they have it.
libraries() {
    LD_LIBRARY_PATH="$libs:$root/lib/x86_64-linux-gnu" ldd "$@" 2>/dev/null |
        awk '$3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' | grep -v : | sort -u
}
put_libraries() {
    local image="$1" library
    shift
    for library in $(libraries "$@"); do
        case "$library" in
            */ld-linux*) cp -L "$library" "$image/lib64/" ;;
            *) cp -L "$library" "$image/lib/" ;;
        esac
    done
}
new_image() {
    rm -rf "$1"
    mkdir -p "$1"/{bin,dev,proc,sys,mod,lib,lib64,tmp,etc}
    cp "$root/bin/busybox" "$1/bin/"
    ln -s busybox "$1/bin/sh"
}
pack() { (cd "$1" && find . | cpio -o -H newc --quiet) >"$2"; }
put_modules() {
    local image="$1" from="$2" module
    shift 2
    for module in "$@"; do cp "$(find "$from/lib/modules" -name "$module.ko" | head -1)" "$image/mod/"; done
}

# A cluster's files. NETWORK is that of host 0 in 10.77.0.0/16, and in NAME, that of a guest, H and T are host and twin.
make_cluster() {
    local cluster="$1" hosts="$2" network="$3" name="$4" log_bytes="$5"
    rm -rf "$cluster"
    "$bin/twinbft" init "$cluster" --hosts "$hosts" --base-port 7100 >/dev/null
    awk -v network="$network" -v name="$name" '
        /^\[\[/ { block = $1 }
        block == "[[host]]" && /^id = / { host = $3 }
        block == "[[host.twin]]" && /^id = / { twin = $3 }
        /^listen = / {
            guest = name; sub("H", host, guest); sub("T", twin, guest)
            printf "listen = \"10.77.%d.1%d:7100\"\nguest = \"%s\"\n", network + host, twin, guest
            next
        }
        { print }' "$cluster/cluster.toml" >"$cluster/cluster.new"
    mv "$cluster/cluster.new" "$cluster/cluster.toml"
    sed -i -e 's/^transport = .*/transport = "xen"/' -e "s/^log_bytes = .*/log_bytes = $log_bytes/" \
        -e 's/^trim_entries = .*/trim_entries = 256/' -e 's/^suspect_after_ms = .*/suspect_after_ms = 20_000/' \
        -e 's/^clock_bound_ms = .*/clock_bound_ms = 60_000/' -e 's/^fetch_after_ms = .*/fetch_after_ms = 2_000/' \
        -e 's/^need_after_ms = .*/need_after_ms = 500/' "$cluster/cluster.toml"
    "$bin/twinbft" check "$cluster/cluster.toml" >/dev/null || fail "the configuration of $cluster is wrong"
}
# Each twin's disk has its own secrets and nothing of the others'.
make_disk() {
    local cluster="$1" twin="$2" disk="$3" size="$4"
    rm -rf "$disk"
    mkdir -p "$disk"/{keys,tls,data}
    cp "$cluster/cluster.toml" "$disk/"
    cp -p "$cluster/keys/$twin.key" "$disk/keys/"
    cp -p "$cluster/tls/ca.pem" "$cluster/tls/$twin".{pem,key} "$disk/tls/"
    cp -rp "$cluster/data/$twin" "$disk/data/"
    rm -f "$disk.img"
    mke2fs -q -t ext4 -d "$disk" "$disk.img" "$size"
}
# What a client and an administrator need, and no replica's secrets.
put_client() {
    mkdir -p "$2"
    cp -rp "$1"/{cluster.toml,keys,tls} "$2/"
    rm -f "$2"/keys/h* "$2"/tls/h*.key "$2/tls/ca.key"
}
# boot MEMORY DOM0-MEMORY IMAGE WORDS: both in MiB; the words are for the kernel of dom0. The console goes to $log.
#
# A run whose guests never started says nothing of what is tested, and is the emulation's; it is done again. One in
# which anything was tested counts, whatever came out.
boot() {
    local memory="$1" dom0_memory="$2" image="$3" words="$4" attempt
    log="$cache/console-$me.log"
    for attempt in 1 2 3; do
        echo "Booting Xen (attempt $attempt, at most $seconds s; console in $log) ..." >&2
        timeout --kill-after=5 "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu "${XEN_E2E_CPU:-max,-smap,-rdtscp,-xsave}" -smp 1 -m "$memory" \
            -kernel "$cache/xen" \
            -append "com1=115200 console=com1 loglvl=warning guest_loglvl=warning dom0_mem=${dom0_memory}M,max:${dom0_memory}M dom0_max_vcpus=1 gnttab_max_frames=256 xsm=silo" \
            -initrd "$cache/vmlinux console=hvc0 quiet panic=1 mitigations=off $words,$image" \
            -no-reboot -display none -nic none -serial stdio -monitor none </dev/null >"$log" 2>&1 || true
        grep -aq 'RESULT' "$log" && break
        cp "$log" "$log.$attempt"
        echo "The guests did not start; console kept in $log.$attempt" >&2
    done
}

# report EXPECTED: the PASS and FAIL lines; succeeds when all passed and so many are there.
report() {
    local expected="$1" results passed failed
    # Kernel messages can stand in front of a line, and a carriage return behind it.
    results="$(tr -d '\r' <"$log" | sed -n 's/.*RESULT \(PASS\|FAIL\) \(.*\)/\1 \2/p')"
    echo "$results"
    passed="$(grep -c '^PASS' <<<"$results" || true)"
    failed="$(grep -c '^FAIL' <<<"$results" || true)"
    [ -n "$results" ] || fail "nothing was tested; see $log"
    grep -aq 'XEN-E2E-END' "$log" || { echo "FAIL dom0 did not come to its end; see $log"; return 1; }
    # As many lines as the programs have: one that is missing is no pass.
    echo "$passed passed, $failed failed, $expected expected; console in $log"
    [ "$failed" = 0 ] && [ "$passed" = "$expected" ]
}
