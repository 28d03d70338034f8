# SPDX-License-Identifier: MIT OR Apache-2.0
"""Verifies a token that was issued here, and issues one with a key of its own, by PyJWT.

Reads what to do as JSON from standard input, and writes what came of it as JSON.
"""

import json
import secrets
import sys

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from jwt.utils import base64url_encode

task = json.load(sys.stdin)
name = task["algorithm"]
algorithm = jwt.get_algorithm_by_name(name)
expected = {"issuer": task["issuer"], "audience": task["audience"], "options": {"require": ["exp", "aud", "iss"]}}
given = [algorithm.from_jwk(json.dumps(task["jwk"]))]
if task["pem"]:
    given.append(load_pem_public_key(task["pem"].encode()))
    given.append(jwt.PyJWKSet.from_json(task["jwks"])[task["kid"]].key)
claims = [jwt.decode(task["token"], key, algorithms=[name], **expected) for key in given]

try:
    jwt.decode(task["altered"], given[0], algorithms=[name], **expected)
    altered = "accepted"
except jwt.InvalidSignatureError:
    altered = "refused"

keys = {}
if name == "HS256":
    key = secrets.token_bytes(40)
    keys["secret"] = base64url_encode(key).decode()
else:
    key = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
    }[name]()
    private = [PrivateFormat.PKCS8] if name == "EdDSA" else [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL]
    keys["private-pem"] = [key.private_bytes(Encoding.PEM, form, NoEncryption()).decode() for form in private]
    keys["public-pem"] = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    keys["private-jwk"] = algorithm.to_jwk(key, as_dict=True)
    keys["public-jwk"] = algorithm.to_jwk(key.public_key(), as_dict=True)
token = jwt.encode(task["payload"], key, algorithm=name)
json.dump({"claims": claims, "altered": altered, "keys": keys, "token": token}, sys.stdout)
