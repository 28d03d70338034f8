// SPDX-License-Identifier: MIT OR Apache-2.0

// Verifies a token that was issued here, and issues one with a key of its own, by jose.
// Reads what to do as JSON from standard input, and writes what came of it as JSON. Its argument is where jose is.

import { randomBytes } from "node:crypto";
import { pathToFileURL } from "node:url";

const jose = await import(pathToFileURL(process.argv[2]));
let text = "";
for await (const piece of process.stdin) text += piece;
const task = JSON.parse(text);
const name = task.algorithm;
const expected = {
  issuer: task.issuer,
  audience: task.audience,
  algorithms: [name],
  typ: "JWT",
  requiredClaims: ["exp", "sub", "jti"],
};
const given = [await jose.importJWK(task.jwk, name)];
if (task.pem) {
  given.push(await jose.importSPKI(task.pem, name));
  given.push(jose.createLocalJWKSet(JSON.parse(task.jwks)));
}
const claims = [];
for (const key of given) claims.push((await jose.jwtVerify(task.token, key, expected)).payload);
const altered = await jose.jwtVerify(task.altered, given[0], expected).then(
  () => "accepted",
  (error) => (error.code === "ERR_JWS_SIGNATURE_VERIFICATION_FAILED" ? "refused" : error.code),
);

const keys = {};
let key;
if (name === "HS256") {
  key = randomBytes(40);
  keys.secret = key.toString("base64url");
} else {
  const pair = await jose.generateKeyPair(name, { extractable: true });
  key = pair.privateKey;
  keys["private-pem"] = [await jose.exportPKCS8(key)];
  keys["public-pem"] = await jose.exportSPKI(pair.publicKey);
  keys["private-jwk"] = await jose.exportJWK(key);
  keys["public-jwk"] = await jose.exportJWK(pair.publicKey);
  keys.thumbprint = await jose.calculateJwkThumbprint(keys["public-jwk"]);
}
const token = await new jose.SignJWT(task.payload).setProtectedHeader({ alg: name, typ: "JWT" }).sign(key);
const thumbprint = await jose.calculateJwkThumbprint(task.jwk);
process.stdout.write(JSON.stringify({ claims, altered, keys, token, thumbprint }));
