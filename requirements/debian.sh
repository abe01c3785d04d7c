#!/bin/sh
# Print the folder of RabbitMQ's or PgBouncer's programs: `debian.sh rabbitmq` or `debian.sh pgbouncer`. They are taken
# from PATH, or out of Debian's packages into .venv/deploy: nothing is installed, no server is started.
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
*)
    echo "usage: debian.sh rabbitmq|pgbouncer" >&2
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
fetch() {
    # What it needs and this machine lacks; what is only for its service is left out.
    wanted=$(apt-get install --simulate --no-install-recommends "$package" 2>/dev/null |
        awk '/^Inst/ {print $2}' | grep -vxE 'adduser|logrotate|libpopt0') && [ -n "$wanted" ] &&
        (cd "$folder" && apt-get -qq download $wanted >/dev/null 2>&1)
}
fetch || { [ "$(id -u)" = 0 ] && apt-get -qq update >/dev/null 2>&1 && fetch; } ||
    stop "not on PATH, and apt-get could not download it"
root=$folder/root
mkdir -p "$root/bin"
for one in "$folder"/*.deb; do
    dpkg-deb -x "$one" "$root"
done

if [ "$name" = pgbouncer ]; then
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
