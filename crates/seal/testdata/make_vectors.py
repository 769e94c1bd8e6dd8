"""Known answers for sealed messages, from an implementation that shares no code with the product.

Follows docs/design/sealing.md. AES-256-GCM and HKDF come from the Python package `cryptography` (OpenSSL), HMAC
and SHA-256 from the standard library; the product uses AWS-LC. Prints the vectors as TOML; see README.md beside this file.
"""

import hashlib
import hmac
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SHARD_COUNTS = [1, 3, 16, 1000, 65536]


def secret(label, size=32):
    """Fixed bytes that look random."""
    out = b""
    while len(out) < size:
        out += hashlib.sha256(b"swarmmq test vector %d " % len(out) + label.encode()).digest()
    return out[:size]


ADMISSION_KEY = secret("admission key")
ROUTING_KEY = secret("routing key")


def hkdf(salt, key, info):
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def hmac_sha256(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def ring(address, key_hash, shard_count):
    digest = hashlib.sha256(b"swarmmq/ring/v1" + bytes([len(address)]) + address + key_hash).digest()
    return (int.from_bytes(digest[:8], "big") * shard_count) >> 64


def seal(name, address=b"shop.orders", shard=3, key_id=1, producer=None, epoch=1, sequence=1, salt=None,
         published_at_ms=1763964000123, key=None, trace=None, headers=(), body=b"hello", renewal=0):
    payload_key = secret("payload key %d" % key_id)
    producer = producer or secret("producer " + name, 16)
    salt = salt or secret("salt " + name)

    address_key = hkdf(b"swarmmq/address/v1", payload_key, address)
    info = bytes([len(address)]) + address + producer + struct.pack(">Q", epoch)
    if renewal == 0:
        info = b"swarmmq/session/v1" + info
    else:
        info = b"swarmmq/renewed/v1" + info + struct.pack(">I", renewal)
    session_key = hkdf(salt, address_key, info)

    plaintext = struct.pack(">H", len(headers))
    for header_name, value in headers:
        header_name = header_name.encode()
        plaintext += struct.pack(">H", len(header_name)) + header_name
        plaintext += struct.pack(">H", len(value)) + value
    plaintext += b"\0" if key is None else b"\1" + struct.pack(">H", len(key)) + key
    plaintext += body

    key_hash = bytes(16)
    if key is not None:
        key_hash = hmac_sha256(ROUTING_KEY, b"swarmmq/key/v1" + bytes([len(address)]) + address + key)[:16]

    flags = (1 if key is not None else 0) | (2 if trace is not None else 0)
    header_len = 112 + (26 if trace is not None else 0) + len(address)
    header = struct.pack(">BBBBHHIIII", 1, 1, flags, len(address), header_len, 0, len(plaintext) + 16, shard, key_id, renewal)
    header += producer + struct.pack(">QQ", epoch, sequence) + salt + struct.pack(">Q", published_at_ms) + key_hash
    header += (trace or b"") + address
    assert len(header) == header_len

    nonce = struct.pack(">IQ", shard, sequence)
    ciphertext = AESGCM(session_key).encrypt(nonce, plaintext, header)
    mac = hmac_sha256(ADMISSION_KEY, header + ciphertext)

    keyed = key_hash if key is not None else b""
    print("\n[[case]]")
    print('name = "%s"' % name)
    print('address = "%s"' % address.decode())
    print("shard = %d\nkey_id = %d" % (shard, key_id))
    if renewal != 0:
        print("renewal = %d" % renewal)
    for field, value in [
        ("payload_key", payload_key), ("producer", producer), ("epoch", struct.pack(">Q", epoch)),
        ("sequence", struct.pack(">Q", sequence)), ("salt", salt),
        ("published_at_ms", struct.pack(">Q", published_at_ms)), ("key", key), ("trace", trace),
    ]:
        if value is not None:
            print('%s = "%s"' % (field, value.hex()))
    print("headers = [%s]" % ", ".join('["%s", "%s"]' % (n, v.hex()) for n, v in headers))
    print('body = "%s"' % body.hex())
    for field, value in [
        ("address_key", address_key), ("session_key", session_key), ("nonce", nonce), ("key_hash", key_hash),
        ("header", header), ("plaintext", plaintext), ("ciphertext", ciphertext), ("mac", mac),
    ]:
        print('%s = "%s"' % (field, value.hex()))
    print("ring_by_address = %s" % [ring(address, b"", count) for count in SHARD_COUNTS])
    print("ring_by_key = %s" % [ring(address, keyed, count) for count in SHARD_COUNTS])


TRACE = secret("trace", 16 + 8) + b"\1\0"
HEADERS = [("content-type", b"application/json"), ("größe", b"\xff\0"), ("empty", b"")]
LONG_ADDRESS = b".".join([b"a" * 64, b"b" * 64, b"c" * 64, b"d" * 60])

print("# Made by make_vectors.py; see README.md. Bytes and numbers of 64 bits and more are hex, big-endian.")
print('admission_key = "%s"' % ADMISSION_KEY.hex())
print('routing_key = "%s"' % ROUTING_KEY.hex())
print("shard_counts = %s" % SHARD_COUNTS)
if sys.argv[1:] == ["renewed"]:
    seal("renewed once", renewal=1, sequence=4194305)
    seal("renewed for another payload key", renewal=2, key_id=2, key=b"customer-17", trace=TRACE, headers=HEADERS)
    seal("renewed as often as can be", address=LONG_ADDRESS, shard=2**32 - 1, key_id=2**32 - 1, producer=b"\xff" * 16,
         epoch=2**64 - 1, sequence=2**64 - 1, salt=b"\xff" * 32, renewal=2**32 - 1)
    sys.exit()
seal("plain")
seal("with a key", key=b"customer-17")
seal("with a trace", trace=TRACE, sequence=2)
seal("with headers", headers=HEADERS, sequence=1 << 40)
seal("empty body", body=b"")
seal("empty key", key=b"")
seal("longest key", key=secret("key", 256), address=b"a")
seal("1 KiB with everything", key=b"customer-17", trace=TRACE, headers=HEADERS, body=secret("body", 1024), key_id=2)
seal("largest numbers", address=LONG_ADDRESS, shard=2**32 - 1, key_id=2**32 - 1, producer=b"\xff" * 16, epoch=2**64 - 1,
     sequence=2**64 - 1, salt=b"\xff" * 32, published_at_ms=2**64 - 1, key=b"k", trace=b"\xff" * 25 + b"\0")
