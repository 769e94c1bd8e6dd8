"""Known answers for the handshake, for administration and for what travels between nodes, from an implementation that shares no code with the product.

Follows docs/protocol.md; needs nothing but Python's standard library. It has no random input:

    python3 make_vectors.py handshake | diff handshake_v1.txt -
    python3 make_vectors.py admin | diff admin_v1.txt -
    python3 make_vectors.py nodes | diff nodes_v1.txt -
"""

import hashlib
import hmac
import sys
from struct import pack

CLUSTER = bytes.fromhex("00112233445566778899aabbccddeeff")
TIME_MS = 1_700_000_000_000


def name(text):
    return bytes([len(text)]) + text.encode()


def text(text):
    return pack(">H", len(text)) + text.encode()


def frame(kind, request, body):
    return pack(">IBBHQ", len(body), kind, 0, 0, request) + body


def handshake():
    token, client_nonce, server_nonce = (bytes(range(start, start + 32)) for start in (0, 0x40, 0x80))
    client_hello = b"SWMQ" + pack(">HHB", 1, 1, 1) + name("app") + client_nonce
    server_hello = pack(">H", 1) + CLUSTER + pack(">H", 3) + server_nonce
    h = hashlib.sha256(client_hello + server_hello).digest()
    client_proof = hmac.new(token, b"swarmmq/auth/client/v1" + h, hashlib.sha256).digest()
    server_proof = hmac.new(token, b"swarmmq/auth/server/v1" + h, hashlib.sha256).digest()
    welcome = server_proof + pack(">IIQQ", 16, 65536, 64 << 20, TIME_MS)

    print("# One handshake: what is given, what follows, and the four frames, header and body, in hex. Principal \"app\", node 3, 16 shards.")
    print("# Made by make_vectors.py. Written once; never changed without a new version.")
    for label, value in [
        ("token", token), ("client_nonce", client_nonce), ("server_nonce", server_nonce), ("cluster", CLUSTER), ("h", h),
        ("client_proof", client_proof), ("server_proof", server_proof),
        ("ClientHello", frame(0x01, 0, client_hello)), ("ServerHello", frame(0x02, 0, server_hello)),
        ("ClientProof", frame(0x03, 0, client_proof)), ("Welcome", frame(0x04, 0, welcome)),
    ]:
        print(label, value.hex())


def admin():
    address, group, producer = name("shop.orders"), name("billing"), "till-7"
    settings = b"\x0f" + pack(">QIIQ", 60_000, 3, 5_000, 1 << 30)
    groups = pack(">H", 1) + group + pack(">QQQQ", 10, 1500, 2, 1)
    producer_id = hashlib.sha256(b"swarmmq/producer/v1" + CLUSTER + producer.encode()).digest()[:16]
    node = pack(">HBB", 3, 4, 7) + name("0.1.0")
    shard = pack(">IHQ", 0, 3, 2) + b"\1" + pack(">H", 3) + b"\1" + pack(">H", 3)
    one = pack(">H", 1)
    path, detour = pack(">BHH", 2, 1, 2), pack(">BHHH", 3, 1, 3, 2)
    route = pack(">H", 2) + detour + pack(">Q", 1900) + path + pack(">BQQQQ", 2, 9000, 2000, 5000, 2)
    candidates = b"\1" + detour + pack(">QQ", 300, 1600)
    words = b"\2" + pack(">HIH", 1, 400, 22) + pack(">HIH", 2, 500, 0)
    link = pack(">HHIIIHB", 1, 2, 1_000_000, 200, 400, 2, 1) + words + pack(">II", 1000, 0)
    explained = candidates + one + link + one + pack(">HIIIBQ", 3, 1600, 1500, 100, 1, 20) + text("next")
    till = name(producer)
    rules = b"\2" + b"\1" + name("shop.orders") + b"\4" + name("*")
    quotas = b"\2" + pack(">BQ", 1, 8) + pack(">BQ", 6, 2)
    questions = [
        ("AddressCreate", b"\1" + address + b"\1" + settings),
        ("AddressList", b"\2"),
        ("AddressInfo", b"\3" + address),
        ("AddressSet", b"\4" + address + b"\4" + pack(">I", 5_000)),
        ("AddressRemove", b"\5" + address + b"\1"),
        ("AddressPurge", b"\6" + address + b"\0"),
        ("GroupList", b"\7" + address),
        ("GroupSeek", b"\x08" + address + group + pack(">BQ", 3, TIME_MS) + b"\0"),
        ("GroupRemove", b"\x09" + address + group + b"\1"),
        ("Status", b"\x0a"),
        ("ProducerTakeOver", b"\x0b" + name(producer)),
        ("NodeDrain", b"\x0c" + pack(">HB", 4, 1)),
        ("NodeRemove", b"\x0d" + pack(">H", 4)),
        ("Routes", b"\x0e"),
        ("RouteExplain", b"\x0f" + pack(">HH", 1, 2)),
        ("SettingSet", b"\x10" + name("routing.policy") + name("p2c-ewma")),
        ("SettingList", b"\x11"),
        ("Access(Add", b"\x12" + till + rules + quotas),
        ("Access(Change", b"\x13" + till + rules + b"\0"),
        ("Access(Bound", b"\x14" + till + quotas),
        ("Access(Rotate", b"\x15" + till + pack(">Q", 3_600_000)),
        ("Access(Enable", b"\x16" + till + b"\0"),
        ("Access(Remove", b"\x17" + till),
        ("Access(List", b"\x18"),
        ("Access(JoinToken", b"\x19" + bytes(range(32)) + pack(">HQ", 4, 3_600_000)),
    ]
    answers = [
        ("Addresses", b"\2" + pack(">I", 2) + name("a") + b"\0" + address + b"\2"),
        ("Address", b"\3" + address + b"\1" + settings + one + pack(">IHQQ", 3, 1, 10, 10_240) + groups),
        ("Count", b"\5" + pack(">Q", 12)),
        ("Groups", b"\7" + groups),
        ("Status", b"\x0a" + CLUSTER + one + node + one + shard + one + text("what") + text("meaning") + text("do")),
        ("Producer", b"\x0b" + producer_id + pack(">Q", 2)),
        ("Routes", b"\x0e" + pack(">H", 2) + pack(">HBH", 1, 1, 1) + route + pack(">HBH", 4, 0, 0)),
        ("RouteExplanation", b"\x0f\1" + pack(">H", 1) + route + pack(">BBQ", 0, 3, 900) + explained),
        ("Settings", b"\x11" + one + name("routing.cohort") + name("none")),
        ("Generation", b"\x12" + pack(">Q", 7)),
        ("Principals", b"\x18" + one + till + pack(">BQBQ", 1, 7, 1, TIME_MS) + rules + quotas + pack(">III", 1, 2, 3)),
    ]

    print("# Every question of an operator and every answer, whole frames in hex: Q or A, its name in the code, bytes. The producer is \"till-7\"")
    print("# of the cluster in the answer to Status. Made by make_vectors.py. Written once; never changed without a new version.")
    for request, (label, body) in enumerate(questions, 1):
        print("Q", label, frame(0x30, request, body).hex())
    for request, (label, body) in enumerate(answers, 20):
        print("A", label, frame(0x31, request, body).hex())


def nodes():
    def peer_hello(node, cluster, nonce):
        known = b"\1" + cluster + pack(">I", 16) if cluster else b"\0"
        listens = [name(f"10.0.0.{node}:{port}") for port in (7400, 7401, 7402, 7403)]
        body = b"SWMP" + pack(">HHHQQB", 2, 3, node, 2, 9, 7) + known + b"".join(listens) + name("0.1.0")
        return body + bytes([node]) * 64 + nonce

    def message(step, body):
        return pack(">IB", 1 + len(body), step) + body

    secret, dial_nonce, accept_nonce = (bytes(range(start, start + 32)) for start in (0, 0x40, 0x80))
    dialler, acceptor = peer_hello(1, None, dial_nonce), peer_hello(2, CLUSTER, accept_nonce)
    h = hashlib.sha256(dialler + acceptor).digest()
    accept_proof = hmac.new(secret, b"swarmmq/peer/accept/v1" + h, hashlib.sha256).digest()
    join_token = bytes(range(0xC0, 0xE0))
    mask = hmac.new(secret, b"swarmmq/peer/join/v1" + h, hashlib.sha256).digest()
    masked = bytes(a ^ b for a, b in zip(join_token, mask))
    dial_proof = hmac.new(secret, b"swarmmq/peer/dial/v1" + h + masked, hashlib.sha256).digest()

    heartbeat = pack(">BHQQQQ", 7, 0x004, 1, 2, 3, 4)
    entries = pack(">I", 2) + pack(">QQBI", 6, 3, 1, 3) + b"one" + pack(">QQBI", 7, 3, 2, 0)
    everything = pack(">BHQQQQQQQQQ", 1, 0x3FF, 1, 2, 3, 4, 5, 6, 7, 8, 9) + pack(">H", 3) + b"why" + entries
    everything += pack(">QQ", 10, 11) + pack(">BQQB", 2, 1, 2, 1) + pack(">Q", 3)
    batch = pack(">I", 2) + pack(">I", 7) + heartbeat + pack(">I", 0xFFFFFFFF) + everything
    path = pack(">BIIIHHH", 3, 0x01020304, 0x05060708, 9, 1, 4, 2)
    packet = pack(">BBB", 2, 1, 1) + path + batch

    print("# Between nodes, in hex: a handshake (what is given, what follows, the messages with their lengths; node 1 joins, node 2 answers),")
    print("# two consensus messages, the batch of both, and the packet that carries it from node 1 over 4 to 2, as node 4 sends it.")
    print("# Made by make_vectors.py. Written once; never changed without a new version.")
    for label, value in [
        ("secret", secret), ("dial_nonce", dial_nonce), ("accept_nonce", accept_nonce), ("cluster", CLUSTER), ("h", h),
        ("join_token", join_token), ("accept_proof", accept_proof), ("dial_proof", dial_proof),
        ("Hello", message(1, dialler)), ("Accept", message(2, acceptor + accept_proof)),
        ("Proof", message(3, dial_proof + masked)), ("Ready", message(4, b"")),
        ("Refused", message(5, pack(">H", 29) + text("node 1 was removed"))),
        ("heartbeat", heartbeat), ("everything", everything), ("batch", batch), ("packet", pack(">I", len(packet)) + packet),
    ]:
        print(label, value.hex())


{"handshake": handshake, "admin": admin, "nodes": nodes}[sys.argv[1]]()
