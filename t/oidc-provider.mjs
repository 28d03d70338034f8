// SPDX-License-Identifier: MIT OR Apache-2.0

// oidc-provider, an authorization server that is certified by the OpenID Foundation, on loopback and without TLS.
//
//   node oidc-provider.mjs MODULES DIRECTORY PORT
//
// MODULES is the directory where npm has installed oidc-provider. DIRECTORY contains keys.json (a JWKS with private
// keys, the first of which signs), clients.json (the registered metadata of clients) and subjects.json (tokens of users
// that can be exchanged, and their users). PORT may be 0. The program prints its issuer when it is ready. On SIGHUP it
// reads all files again, and prints "again".

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

// Otherwise, warnings go to standard output.
console.info = console.error;
console.warn = console.error;

const [modules, directory, port] = process.argv.slice(2);
const { default: Provider, errors } = await import(
  pathToFileURL(join(modules, 'node_modules/oidc-provider/lib/index.js'))
);
const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const RESOURCE = 'https://copy-offload.example.org';

const read = (name) => JSON.parse(readFileSync(join(directory, name)));

function provider(issuer) {
  const jwks = read('keys.json');
  const subjects = read('subjects.json');
  const server = {
    scope: 'data:read data:write',
    audience: 'copy-offload',
    accessTokenTTL: 600,
    accessTokenFormat: 'jwt',
    jwt: { sign: { alg: jwks.keys[0].alg, kid: jwks.keys[0].kid } },
  };
  const resource = (name) => {
    if (name !== RESOURCE) throw new errors.InvalidTarget();
    return server;
  };
  const made = new Provider(issuer, {
    jwks,
    clients: read('clients.json'),
    clientDefaults: { id_token_signed_response_alg: jwks.keys[0].alg },
    scopes: ['data:read', 'data:write', 'data:admin'],
    clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'private_key_jwt'],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => RESOURCE,
        getResourceServerInfo: (ctx, name) => resource(name),
      },
    },
    cookies: { keys: ['unused'] },
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  });
  // RFC 8693, as far as needed here: exchanges a token of a user for another one of the same user.
  made.registerGrantType(
    TOKEN_EXCHANGE,
    async (ctx) => {
      const { client, params } = ctx.oidc;
      const user = subjects[params.subject_token];
      if (params.subject_token_type !== 'urn:ietf:params:oauth:token-type:jwt') {
        throw new errors.InvalidRequest('subject_token_type is not supported');
      }
      if (!user) throw new errors.InvalidGrant('subject_token is not good');
      const token = new made.AccessToken({ accountId: user, client, gty: 'token_exchange', scope: params.scope });
      token.resourceServer = new made.ResourceServer(RESOURCE, resource(params.resource ?? RESOURCE));
      ctx.body = {
        access_token: await token.save(),
        issued_token_type: 'urn:ietf:params:oauth:token-type:access_token',
        token_type: 'Bearer',
        expires_in: token.expiration,
      };
    },
    ['subject_token', 'subject_token_type', 'audience', 'resource', 'scope'],
    ['audience', 'resource'],
  );
  return made.callback();
}

let callback;
const server = createServer((request, response) => callback(request, response));
server.listen(Number(port), '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;
callback = provider(issuer);
process.on('SIGHUP', () => {
  callback = provider(issuer);
  console.log('again');
});
console.log(issuer);
