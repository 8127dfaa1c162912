# Sourced by the scripts beside it; needs bash, does nothing when only sourced.
#
#   set_up           makes .venv at the repository's root what pyproject.toml asks for
#   bring_display    where there is no display, starts an X server for this script alone
#
# Everything is done at most once: what stands already is left alone, so that a second run begins
# within a second. Messages go to stderr; stdout belongs to the program that the script runs.
# shellcheck shell=bash

set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
extras=napari,fiji,images,demo,test
stamp=$venv/.openhcs-stream-installed   # written last: names what was installed, and where
unfinished=$venv/.openhcs-stream-unfinished   # there while an installation runs

# What Qt and OpenGL load at run time (found one by one on an empty Debian 12).
debian_libraries=(
    libfontconfig1 libgl1 libegl1 libglib2.0-0 libxkbcommon0 libdbus-1-3
    libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0
    # Java's windows, and letters to write in them:
    libx11-6 libxext6 libxi6 libxrender1 libxtst6 fonts-dejavu-core
)
fedora_libraries=(
    fontconfig mesa-libGL mesa-libEGL glib2 libxkbcommon dbus-libs
    libxkbcommon-x11 xcb-util-cursor xcb-util-wm xcb-util-keysyms libxcb
    libX11 libXext libXi libXrender libXtst dejavu-sans-fonts
)
# Programs that a script needs besides; it adds to these before `set_up`. One name for both systems.
tools=()

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '\n%s: %s\n' "$(basename -- "$0")" "$1" >&2
    shift
    printf '    %s\n' "$@" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

has_display() { [[ $(uname -s) != Linux || -n ${DISPLAY:-} || -n ${WAYLAND_DISPLAY:-} ]]; }

# --- the environment ------------------------------------------------------------------------------

set_up() {
    install_system_packages
    if ! is_installed; then
        lock
        is_installed || make_environment   # another script may have done it while we waited
        unlock
    fi
    unset PYTHONHOME
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

# What has to be installed, as text: when it changes, pip has work to do.
wanted() {
    printf '%s\n%s\n' "$root" "$extras"
    cksum <"$root/pyproject.toml"
    cat "$venv/pyvenv.cfg"   # Python's version and place
}

is_installed() {
    [[ -f $stamp && ! -e $unfinished && -x $venv/bin/python ]] && [[ $(wanted) == "$(<"$stamp")" ]]
}

make_environment() {
    local python
    if ! is_usable_environment; then
        python=$(find_python) || die "no Python 3.11 or later was found." \
            "Install one (Debian 12, Ubuntu 24.04 and Fedora carry it; elsewhere: python.org, conda or uv)," \
            "or name yours: OPENHCS_STREAM_PYTHON=/path/to/python $0"
        say "making .venv with $python ($("$python" -V 2>&1))"
        mkdir -p "$venv"
        : >"$unfinished"
        # Not --clear: that would take the mark away too, and an interruption would go unnoticed.
        find "$venv" -mindepth 1 -maxdepth 1 ! -path "$unfinished" -exec rm -rf {} +
        "$python" -m venv "$venv" || die "$python could not make a virtual environment." \
            "On Debian and Ubuntu: sudo apt-get install python3-venv"
    fi
    : >"$unfinished"
    say "installing openhcs-stream[$extras] into .venv (a minute or two, the first time)"
    # The pip that came with Python may be years old, and needs twice as long.
    pip_install --upgrade pip || say "pip stays as old as it is"
    pip_install --editable "${root}[$extras]" || die \
        "pip could not install openhcs-stream into .venv; its reason stands above." \
        "Mend it and start this again: what was interrupted is done anew."
    # ImageJ's jar, so that no viewer (and no test) fetches it later; without a network it goes on.
    "$venv/bin/python" -m openhcs_stream_fiji >/dev/null || say "ImageJ is fetched when it is used"
    rm -f "$unfinished"
    wanted >"$stamp.new"
    mv -f "$stamp.new" "$stamp"
    say "the environment is ready: .venv"
}

pip_install() {
    PIP_ROOT_USER_ACTION=ignore "$venv/bin/python" -m pip install --quiet --no-input \
        --disable-pip-version-check "$@"
}

# One that was interrupted, or copied here from another place, is made anew.
is_usable_environment() {
    [[ -x $venv/bin/python && ! -e $unfinished ]] || return 1
    [[ ! -f $stamp || $(head -n 1 "$stamp") == "$root" ]] || return 1
    "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local python
    for python in ${OPENHCS_STREAM_PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
        if has "$python" && "$python" -c "$can_make_venv" 2>/dev/null; then
            command -v "$python"
            return 0
        fi
    done
    return 1
}
can_make_venv='import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))'

lock() {
    has flock || return 0   # macOS: two set-ups at once are the user's to avoid
    exec 9>"$root/.setup.lock"
    flock --nonblock 9 && return 0
    say "another set-up is running here; waiting for it"
    flock 9
}

unlock() {
    has flock || return 0
    exec 9>&-
}

# --- system packages ------------------------------------------------------------------------------

install_system_packages() {
    [[ $(uname -s) == Linux && -z ${OPENHCS_STREAM_NO_SYSTEM_PACKAGES:-} ]] || return 0
    local missing=() install
    if has dpkg-query && has apt-get; then
        mapfile -t missing < <(missing_on_debian)
        install="apt-get install --no-install-recommends"
    elif has rpm && has dnf; then
        mapfile -t missing < <(missing_on_fedora)
        install="dnf install"
    else
        return 0   # another family: Qt itself says what it lacks
    fi
    [[ ${#missing[@]} -gt 0 ]] || return 0
    [[ $(id -u) -eq 0 && $install == apt-get* ]] || die "system packages are missing:" \
        "sudo $install ${missing[*]}" "" \
        "Then start this again. (If they are here in another way: OPENHCS_STREAM_NO_SYSTEM_PACKAGES=1)"
    say "installing system packages: ${missing[*]}"
    lock
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    {
        apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"
    } </dev/null >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "apt-get could not install them; its last lines stand above, all of it in $log."
    }
    rm -f "$log"
    unlock
}

missing_on_debian() {
    local package wanted=("${debian_libraries[@]}" "${tools[@]}") installed
    has_display || wanted+=(xvfb xauth)
    is_installed || find_python >/dev/null || wanted+=(python3 python3-venv)
    installed=" $(dpkg-query --show --showformat '${db:Status-Status}:${Package} ' \
        "${wanted[@]}" "${wanted[@]/%/t64}" 2>/dev/null || true)"
    for package in "${wanted[@]}"; do   # with a 64-bit time_t, Debian 13 calls some NAMEt64
        [[ $installed == *" installed:$package "* || $installed == *" installed:${package}t64 "* ]] ||
            printf '%s\n' "$package"
    done
}

missing_on_fedora() {
    local package wanted=("${fedora_libraries[@]}" "${tools[@]}")
    has_display || wanted+=(xorg-x11-server-Xvfb xorg-x11-xauth)
    is_installed || find_python >/dev/null || wanted+=(python3 python3-pip)
    for package in "${wanted[@]}"; do
        rpm --query --whatprovides "$package" >/dev/null 2>&1 || printf '%s\n' "$package"
    done
}

# --- the display ----------------------------------------------------------------------------------

# Where there is no display: an X server that this script brings, with a number and a key of its own.
# A watcher holds the reading end of a pipe and whatever this script becomes (`exec`) the writing
# end, so the server ends when that program does, by whatever death (`bring_display program`), or
# when after it the last window is closed (`bring_display windows`).
bring_display() {
    ! has_display || return 0
    if ! has Xvfb || ! has xauth; then
        die "there is no display, and no Xvfb and xauth to make one." \
            "Install them (Debian: sudo apt-get install xvfb xauth), or set DISPLAY."
    fi
    local until=$1 folder server key number=""
    folder=$(mktemp -d)
    key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    # The server takes any key in its file, whatever the number; clients look theirs up by the number.
    xauth -q -f "$folder/key" add :0 . "$key" 2>/dev/null
    mkfifo "$folder/started"
    # A session of its own: Ctrl-C is for the program, which still needs its windows to end well.
    setsid Xvfb -displayfd 3 -screen 0 1600x1200x24 -nolisten tcp -auth "$folder/key" \
        3>"$folder/started" </dev/null >/dev/null 2>&1 &
    server=$!
    exec 8> >(watch_server "$server" "$folder" "$until")
    read -r -t 20 number <"$folder/started" || true
    [[ -n $number ]] || die "Xvfb did not start within 20 s." "Try it by hand: Xvfb :99"
    xauth -q -f "$folder/key" add ":$number" . "$key" 2>/dev/null
    printf '%s\n' "$number" >"$folder/number"
    export DISPLAY=:$number XAUTHORITY=$folder/key
    say "no display here: using Xvfb on :$number"
}

watch_server() {
    local server=$1 folder=$2 until=$3
    exec >/dev/null 2>&1   # else whoever reads this script's output would wait for us
    trap '' INT TERM HUP
    cat   # until the program has gone
    while [[ $until == windows ]] && has_window "$(<"$folder/number")"; do sleep 1; done
    kill "$server"
    rm -rf "$folder"
}

has_window() { grep -Eq " 03 +[0-9]+ @?/tmp/.X11-unix/X$1\$" /proc/net/unix; }
