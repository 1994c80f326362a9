#!/bin/sh
# Sees to the Debian packages that a step needs: names those that are missing and, as root, installs them.
#   tools/packages.sh [setup] [test] [hosts] [vm] [bench]
# What counts is whether the thing itself is there, wherever it came from. PYTHON names the interpreter.
set -eu

missing=
need() { # PACKAGE CHECK...: the package is missing if the check fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
have_library() { "${PYTHON:-python3}" -c "import ctypes; ctypes.CDLL('$1')"; }
is_static() { # the program runs where there is no other file, as in an initramfs
    program=$(command -v "$1") && ! head -c 8192 "$program" | grep -q ld-linux
}
have_postgresql() { ls /usr/lib/postgresql/*/bin/initdb; }
PATH=$PATH:/usr/sbin:/sbin

for step in "$@"; do
    case $step in
    setup)
        need python3-dev "${PYTHON:-python3}" -c "import os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')"
        need python3-venv "${PYTHON:-python3}" -c 'import ensurepip, venv'
        # The eBPF loader. Elsewhere than on Linux, midstream compiles programs but loads none.
        [ "$(uname -s)" != Linux ] || need libbpf1 have_library libbpf.so.1
        ;;
    test)
        need ethtool command -v ethtool
        need iperf3 command -v iperf3
        need mosquitto command -v mosquitto
        need netcat-openbsd command -v nc
        need postgresql have_postgresql
        need socat command -v socat
        need systemd command -v systemd-analyze
        ;;
    hosts)
        need debootstrap command -v debootstrap
        need ethtool command -v ethtool
        need iproute2 command -v ip
        need systemd-container command -v systemd-nspawn
        ;;
    bench)
        need mosquitto command -v mosquitto
        ;;
    vm)
        need qemu-system-x86 command -v qemu-system-x86_64
        need busybox-static is_static busybox
        need kmod command -v depmod
        ;;
    *)
        echo "packages.sh: unknown step '$step' (setup, test, hosts, vm, bench)" >&2
        exit 2
        ;;
    esac
done
[ -n "$missing" ] || exit 0

install="apt-get install --yes --no-install-recommends$missing"
echo "midstream: missing Debian packages:$missing"
if ! command -v apt-get >/dev/null; then
    echo "midstream: there is no apt-get here; install what they provide, then run make again" >&2
    exit 1
elif [ "$(id -u)" -ne 0 ]; then
    echo "midstream: install them as root, then run make again:" >&2
    echo "    apt-get update && $install" >&2
    exit 1
fi
echo "midstream: $install"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
$install --quiet --quiet -o Dpkg::Use-Pty=0 </dev/null >/dev/null
