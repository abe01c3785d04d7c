"""Where webhooks may go: every spelling of an internal address, judged without a network."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import addresses

LOOPBACK = ("127.0.0.0/8",)

REFUSED = [
    # loopback, in every spelling
    "http://127.0.0.1/",
    "http://127.0.0.1:8000/hook",
    "http://127.255.255.254/",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0x7f.1/",
    "http://0X7F.0x0.0x0.0x1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0177.0x0.0.01/",
    "http://127.0.0.01/",
    "http://127.0.0.1./",
    "http://4294967297/",
    "http://1.2.3.4.5/",
    "http://256.256.256.256/",
    "http://0x/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[0000::0001]:443/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    # names of this machine and of internal networks
    "http://localhost/",
    "http://LocalHost:8000/",
    "http://localhost./",
    "http://app.localhost/",
    "http://localhost.localdomain/",
    "http://printer.local/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://metadata/",
    "http://redis:6379/",
    "http://db.corp/",
    "http://nas.lan/",
    "http://router.home.arpa/",
    "http://api.default.svc/",
    "http://api.default.svc.cluster.local/",
    # private, shared, link-local, special
    "http://0/",
    "http://0.0.0.0/",
    "http://0.0.0.0:22/",
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data",
    "http://168.63.129.16/",
    "http://169.254.169.254/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://2852039166/",
    "http://172.16.0.1/",
    "http://172.31.255.254/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://192.168.1.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[febf::1]/",
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[::ffff:8.8.8.8]/",
    # shapes that parsers of URLs disagree about
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1@example.com/",
    "http://user:password@example.com/",
    "http://@example.com/",
    "http://example.com\\@127.0.0.1/",
    "http:\\\\127.0.0.1/",
    "http://127.0.0.1\t/",
    "http://exa\nmple.com/",
    "http://example.com/\x00",
    " http://example.com/",
    "http://example.com/a b",
    "http://127.0.0.1%2f@example.com/",
    "http://127%2e0%2e0%2e1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://b\u00fccher.example/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:8o/",
    "http://example.com:80:80/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]example.com/",
    "http://[v1.x]/",
    "http://example..com/",
    "http://.example.com/",
    "http://exa*mple.com/",
    f"http://{'a' * 64}.com/",
    f"http://{'a.' * 127}com/",
    "http:///path",
    "http:/127.0.0.1/",
    "http://",
    "https:",
    "//127.0.0.1/",
    "127.0.0.1",
    "",
    # other schemes, and too much
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "unix:///run/docker.sock",
    "javascript:alert(1)",
    "https://example.com/" + "a" * 2048,
]

ACCEPTED = [
    "https://hooks.example.com/stoker",
    "http://hooks.example.com:8080/a/b?c=d&e=%20",
    "HTTPS://Hooks.Example.COM./x",
    "https://xn--bcher-kva.example/",
    "https://under_score.example.com/",
    "https://example.com:/",
    "https://example.com#part",
    "https://localhost.example.com/",
    "https://local.example.com/",
    "https://internal-tools.example.com/",
    "https://10.0.0.1.example.com/",
    "http://8.8.8.8/",
    "https://93.184.215.14:8443/hook",
    "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
]


@pytest.mark.parametrize("url", REFUSED)
def test_internal_and_ambiguous_urls_are_refused_with_a_reason(url: str) -> None:
    """Whatever is internal, in any spelling, and whatever parsers could read in two ways, is refused."""
    why = addresses.refusal(url, ())
    assert why is not None
    assert why.startswith(("must ", "names "))


@pytest.mark.parametrize("url", ACCEPTED)
def test_urls_on_the_internet_are_accepted(url: str) -> None:
    """Names and addresses on the internet pass; names are not resolved."""
    assert addresses.refusal(url, ()) is None


@pytest.mark.parametrize(
    ("url", "networks"),
    [
        ("http://127.0.0.1:9/hook", ("127.0.0.0/8",)),
        ("http://[::ffff:127.0.0.1]/", ("127.0.0.0/8",)),
        ("http://[::1]/", ("::1",)),
        ("http://localhost:9/", ("127.0.0.1",)),
        ("http://app.localhost/", ("::1/128",)),
        ("http://10.1.2.3/", ("192.168.0.0/16", "10.0.0.0/8")),
        ("http://10.1.2.3/", ["10.1.2.9/8"]),
        ("http://[fd12::1]/", ("fd00::/8",)),
        ("http://[64:ff9b::8.8.8.8]/", ("64:ff9b::/96",)),
        ("http://receiver:9000/", ("10.0.0.0/8",)),
        ("http://hooks.internal/", ("10.0.0.0/8",)),
    ],
)
def test_the_operator_can_open_internal_networks(url: str, networks: tuple[str, ...]) -> None:
    """What lies in an opened network is accepted, and internal names are, to be judged by where they lead."""
    assert addresses.refusal(url, networks) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/",
        "http://2130706433/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://user@127.0.0.1/",
        "ftp://127.0.0.1/",
        "http://[64:ff9b::7f00:1]/",
    ],
)
def test_an_opened_network_opens_nothing_else(url: str) -> None:
    """Opening loopback leaves other networks, odd spellings and other schemes refused."""
    assert addresses.refusal(url, LOOPBACK) is not None


def test_localhost_needs_an_opened_loopback() -> None:
    """Opening some other network does not open this machine by its name."""
    assert addresses.refusal("http://localhost/", ("10.0.0.0/8",)) is not None


@pytest.mark.parametrize(
    ("address", "networks", "verdict"),
    [
        ("8.8.8.8", (), True),
        ("2606:4700::1111", (), True),
        ("127.0.0.1", (), False),
        ("127.0.0.1", LOOPBACK, True),
        ("::ffff:127.0.0.1", LOOPBACK, True),
        ("::ffff:127.0.0.1", (), False),
        ("::1", LOOPBACK, False),
        ("fe80::1%eth0", ("fe80::/10",), False),
        ("fe80::1", ("fe80::/10",), True),
        ("hooks.example.com", (), False),
        ("0177.0.0.1", LOOPBACK, False),
        ("", (), False),
    ],
)
def test_resolved_addresses_are_judged(address: str, networks: tuple[str, ...], verdict: bool) -> None:
    """An address may be dialled when it is on the internet or opened; what is no address may not."""
    assert addresses.allowed(address, networks) is verdict


PORTS = ((80, 80), (443, 443), (1024, 65535))


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://hooks.example.com/", None),
        ("https://hooks.example.com/", None),
        ("https://hooks.example.com:/", None),
        ("http://hooks.example.com:443/", None),
        ("http://hooks.example.com:1024/", None),
        ("http://hooks.example.com:00080/", None),
        ("http://hooks.example.com:22/", 22),
        ("https://hooks.example.com:81/", 81),
        ("https://hooks.example.com:1023/", 1023),
        ("http://hooks.example.com:0000025/", 25),
    ],
)
def test_ports_are_those_of_the_list(url: str, port: int | None) -> None:
    """The port that is meant, written or not, is in one of the ranges, or the refusal names it and them."""
    why = addresses.refusal(url, (), PORTS)
    assert why == (None if port is None else f"names port {port}; webhooks may reach 80, 443, 1024-65535")
    assert addresses.refusal(url, ()) is None


@pytest.mark.parametrize(
    ("address", "networks", "verdict"),
    [
        # A network in its IPv4-mapped spelling is the IPv4 network, and a mapped address is the IPv4 address.
        ("10.1.2.3", ("::ffff:10.0.0.0/104",), True),
        ("172.16.1.2", ("::ffff:10.0.0.0/104",), False),
        ("::ffff:10.1.2.3", ("::ffff:10.0.0.0/104",), True),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        ("127.0.0.1", ("::ffff:0:0/96",), True),
        ("::ffff:127.0.0.1", ("::/0",), False),
        ("::ffff:127.0.0.1", ("0.0.0.0/0",), True),
        ("127.0.0.1", ("::/0",), False),
        ("::ffff:8.8.8.8", (), False),
        # Behind an opened NAT64 lies the internet, and what is opened of the inside.
        ("64:ff9b::8.8.8.8", (), False),
        ("64:ff9b::8.8.8.8", ("64:ff9b::/96",), True),
        ("64:ff9b::127.0.0.1", ("64:ff9b::/96",), False),
        ("64:ff9b::169.254.169.254", ("64:ff9b::/96",), False),
        ("64:ff9b::10.1.2.3", ("64:ff9b::/96", "10.0.0.0/8"), True),
        # ISATAP: a tunnel to the IPv4 address at the end, in any network.
        ("2606:4700::5efe:7f00:1", (), False),
        ("2606:4700::200:5efe:7f00:1", (), False),
        ("2606:4700::300:5efe:7f00:1", (), True),
        ("2606:4700::5efe:7f00:1", ("2606:4700::/32",), True),
        ("::127.0.0.1", (), False),
        ("::ffff:0:127.0.0.1", (), False),
    ],
)
def test_an_ipv4_address_inside_another_is_seen(address: str, networks: tuple[str, ...], verdict: bool) -> None:
    """Mapped, translated and tunnelled addresses lead where the address inside them leads."""
    assert addresses.allowed(address, networks) is verdict


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_allowed(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Our own list is at least as strict as the one of the standard library."""
    if address.is_private or address.is_loopback or address.is_multicast or address.is_reserved:
        assert not addresses.allowed(str(address), ())


@given(st.text(max_size=60))
def test_no_text_is_too_strange_to_judge(text: str) -> None:
    """Any text gets an answer, and nothing but http and https URLs is accepted."""
    why = addresses.refusal(text, LOOPBACK)
    assert why is not None or text.lower().startswith(("http://", "https://"))
    addresses.refusal(f"http://{text}/", LOOPBACK)
    addresses.allowed(text, ())
