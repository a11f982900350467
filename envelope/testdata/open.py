"""Opens a Bulla envelope with the Python package "cryptography" (48 or later) and nothing of Bulla.

Reads {"jws", "x", "y", "private"} from stdin: the envelope, the point of the signing key and the serialized HPKE private
key, binary values in base64url. Prints {"secret", "r", "context"}. It follows the text of the wire format in
envelope.go, for the suites that the package has (HPKE-9-KE, HPKE-7-KE).
"""

import base64
import hashlib
import json
import sys

from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, utils, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def dec(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def enc(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def num(text):
    return int.from_bytes(dec(text), "big")


task = json.load(sys.stdin)

# JWS
head64, payload64, sig64 = task["jws"].split(".")
head = json.loads(dec(head64))
assert head["alg"] == "ES256" and head["typ"] == "bulla-envelope+jws"
sig = dec(sig64)
r, s = int.from_bytes(sig[:32], "big"), int.from_bytes(sig[32:], "big")
key = ec.EllipticCurvePublicNumbers(num(task["x"]), num(task["y"]), ec.SECP256R1()).public_key()
key.verify(utils.encode_dss_signature(r, s), f"{head64}.{payload64}".encode(), ec.ECDSA(hashes.SHA256()))

# JWE
jwe = json.loads(dec(payload64))
protected = json.loads(dec(jwe["protected"]))
private = dec(task["private"])
if protected["alg"] == "HPKE-9-KE":
    wide = hashlib.shake_256(private).digest(96)
    recipient = hpke.MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(wide[:64]), x25519.X25519PrivateKey.from_private_bytes(wide[64:])
    )
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.SHAKE256, hpke.AEAD.AES_256_GCM)
else:
    recipient = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
    suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

context = dec(jwe["aad"])
info = b"JOSE-HPKE rcpt\xff" + protected["enc"].encode() + b"\xff" + hashlib.sha256(context).digest()
cek = suite.decrypt(dec(jwe["header"]["ek"]) + dec(jwe["encrypted_key"]), recipient, info)
aad = f"{jwe['protected']}.{jwe['aad']}".encode()
plain = AESGCM(cek).decrypt(dec(jwe["iv"]), dec(jwe["ciphertext"]) + dec(jwe["tag"]), aad)

label = b"bulla-data/v1\n"
assert plain.startswith(label)
r = plain[len(label) : len(label) + 32]
assert enc(hashlib.sha256(r).digest()) == json.loads(context)["lock"]
print(json.dumps({"secret": enc(plain[len(label) + 32 :]), "r": enc(r), "context": context.decode()}))
