"""Known answers for the handshake and for administration, from an implementation that shares no code with the product.

Follows docs/protocol.md; needs nothing but Python's standard library. It has no random input:

    python3 make_vectors.py handshake | diff handshake_v1.txt -
    python3 make_vectors.py admin | diff admin_v1.txt -
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
    ]
    answers = [
        ("Addresses", b"\2" + pack(">I", 2) + name("a") + b"\0" + address + b"\2"),
        ("Address", b"\3" + address + b"\1" + settings + one + pack(">IHQQ", 3, 1, 10, 10_240) + groups),
        ("Count", b"\5" + pack(">Q", 12)),
        ("Groups", b"\7" + groups),
        ("Status", b"\x0a" + CLUSTER + one + node + one + shard + one + text("what") + text("meaning") + text("do")),
        ("Producer", b"\x0b" + producer_id + pack(">Q", 2)),
    ]

    print("# Every question of an operator and every answer, whole frames in hex: Q or A, its name in the code, bytes. The producer is \"till-7\"")
    print("# of the cluster in the answer to Status. Made by make_vectors.py. Written once; never changed without a new version.")
    for request, (label, body) in enumerate(questions, 1):
        print("Q", label, frame(0x30, request, body).hex())
    for request, (label, body) in enumerate(answers, 20):
        print("A", label, frame(0x31, request, body).hex())


{"handshake": handshake, "admin": admin}[sys.argv[1]]()
