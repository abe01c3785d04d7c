#!/bin/sh
# Print the folder of a server's programs: `debian.sh rabbitmq`, and so for pgbouncer, prometheus, zsh, fish. They are taken from
# PATH, or out of Debian's packages into .venv/deploy: nothing is installed, no server is started.
set -eu
cd "$(dirname "$0")/.."

stop() {
    echo "$name: $*; install it (Debian: apt-get install $package) so that $program is on PATH" >&2
    exit 1
}

name=${1-}
case $name in
rabbitmq) package=rabbitmq-server program=rabbitmq-server ;;
pgbouncer) package=pgbouncer program=pgbouncer ;;
prometheus) package=prometheus program=prometheus ;; # promtool is beside it
zsh | fish) package=$name program=$name ;;
*)
    echo "usage: debian.sh rabbitmq|pgbouncer|prometheus|zsh|fish" >&2
    exit 2
    ;;
esac
kept=$PWD/.venv/deploy/$name

# Debian's /usr/sbin/rabbitmq-server is for its own service only; behind it lie the real ones.
for folder in "$kept/bin" /usr/lib/rabbitmq/bin "$(dirname "$(command -v $program || echo /usr/sbin/$program)")"; do
    if [ -x "$folder/$program" ]; then
        echo "$folder"
        exit
    fi
done

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || stop "not on PATH, and this is no Debian"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# What it needs and this machine lacks; what is only for its service, or for Prometheus' pages, is left out.
wanted() {
    [ "$name" != prometheus ] || { echo prometheus && return; }
    apt-get install --simulate --no-install-recommends "$package" 2>/dev/null |
        awk '/^Inst/ {print $2}' | grep -vxE 'adduser|logrotate|libpopt0'
}
fetch() {
    found=$(wanted) && [ -n "$found" ] && (cd "$folder" && apt-get -qq download $found >/dev/null 2>&1)
}
fetch || { [ "$(id -u)" = 0 ] && apt-get -qq update >/dev/null 2>&1 && rm -f "$folder"/*.deb && fetch; } ||
    stop "not on PATH, and apt-get could not download it"
root=$folder/root
mkdir -p "$root/bin"
for one in "$folder"/*.deb; do
    dpkg-deb -x "$one" "$root"
done

if [ "$name" = prometheus ]; then
    ln -s ../usr/bin/promtool ../usr/bin/prometheus "$root/bin"
elif [ "$name" = zsh ] || [ "$name" = fish ]; then
    mv "$(find "$root" -path "*/bin/$name" -type f)" "$root/$name"
    cat >"$root/bin/$name" <<'END'
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")
LD_LIBRARY_PATH=$(echo "$root"/usr/lib/*-linux-gnu) exec "$root/$(basename "$0")" "$@"
END
elif [ "$name" = pgbouncer ]; then
    cat >"$root/bin/pgbouncer" <<'END'
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")
LD_LIBRARY_PATH=$(echo "$root"/usr/lib/*-linux-gnu) exec "$root/usr/sbin/pgbouncer" "$@"
END
else
    # Erlang's programs know one place only.
    find "$root/usr/lib/erlang" -type f -name erl -exec sed -i 's|^\( *\)ROOTDIR=/usr/lib/erlang|\1ROOTDIR=$ERL_ROOTDIR|' {} +
    cat >"$root/bin/rabbitmq-server" <<'END'
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")
export ERL_ROOTDIR="$root/usr/lib/erlang" PATH="$root/usr/lib/erlang/bin:$PATH"
export LD_LIBRARY_PATH=$(echo "$root"/usr/lib/*-linux-gnu)
exec "$root/usr/lib/rabbitmq/lib/"rabbitmq_server-*"/sbin/$(basename "$0")" "$@"
END
    cp "$root/bin/rabbitmq-server" "$root/bin/rabbitmqctl"
fi
chmod 755 "$root"/bin/* "$root"
mkdir -p "$(dirname "$kept")"
# At once whole, whoever else is at this.
mv -T "$root" "$kept.$$"
mv -T "$kept.$$" "$kept" 2>/dev/null || rm -rf "$kept.$$"
echo "$kept/bin"
