// SPDX-License-Identifier: MIT OR Apache-2.0

// An OpenID provider on loopback, without TLS: oidc-provider, which is certified by the OpenID Foundation.
//
//   node provider.mjs FILE
//
// FILE is JSON: `port`, `clients` (their metadata, as they are registered) and `users` (the claims of each, by `sub`). It prints
// its issuer when it serves. Anybody logs in as anybody, by name. No consent is asked for.
//
// POST /control takes JSON: {"path": PATH, "fault": "down" | "slow" | "huge" | "nonce" | null} makes requests to PATH fail, and
// {"rotate": true} replaces the keys. Requests that are held by "slow" go on when the fault ends.

import { once } from 'node:events';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';

import Provider from 'oidc-provider';

// What it warns of goes to standard output otherwise.
console.info = console.error;
console.warn = console.error;

const { port, clients, users } = JSON.parse(readFileSync(process.argv[2]));
const SCOPE = 'openid profile email offline_access';
const HUGE = 10 << 20;

// What the provider knows, which outlives its keys.
class Memory {
  static all = new Map();

  constructor(model) {
    this.of = (id) => `${model} ${id}`;
  }

  async upsert(id, payload) {
    Memory.all.set(this.of(id), payload);
  }

  async find(id) {
    return Memory.all.get(this.of(id));
  }

  async findByUid(uid) {
    return [...Memory.all.values()].find((payload) => payload.uid === uid);
  }

  async consume(id) {
    Memory.all.get(this.of(id)).consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    Memory.all.delete(this.of(id));
  }

  async revokeByGrantId(grantId) {
    for (const [id, payload] of Memory.all) {
      if (payload.grantId === grantId) Memory.all.delete(id);
    }
  }
}

function key() {
  const jwk = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' });
  return { ...jwk, kid: randomUUID(), alg: 'RS256', use: 'sig' };
}

const page = (title, body) =>
  `<!doctype html><html lang="en"><meta charset="utf-8"><title>${title}</title><h1>${title}</h1>${body}</html>`;

function make(issuer) {
  const made = new Provider(issuer, {
    adapter: Memory,
    clients,
    jwks: { keys: [key()] },
    cookies: { keys: ['unused'] },
    claims: { openid: ['sub'], profile: ['name', 'preferred_username', 'groups'], email: ['email', 'email_verified'] },
    scopes: SCOPE.split(' '),
    // A relying party that asks for no user information sees the claims in the identity token.
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    features: {
      devInteractions: { enabled: false },
      backchannelLogout: { enabled: true },
      rpInitiatedLogout: {
        enabled: true,
        logoutSource: (ctx, form) => {
          const button = '<button form="op.logoutForm" name="logout" value="yes">Log out of the provider</button>';
          ctx.body = page('Log out', form + button);
        },
        postLogoutSuccessSource: (ctx) => {
          ctx.body = page('Logged out', '');
        },
      },
    },
    interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    findAccount: (ctx, id) => users[id] && { accountId: id, claims: () => ({ sub: id, ...users[id] }) },
    loadExistingGrant: async (ctx) => {
      const { client, session, provider } = ctx.oidc;
      const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
      grant.addOIDCScope(SCOPE);
      await grant.save();
      return grant;
    },
    renderError: (ctx, out) => {
      ctx.type = 'html';
      ctx.body = page('Error of the provider', `<p>${out.error}</p>`);
    },
    // The one that it would use by itself refuses loopback addresses.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  });
  made.on('server_error', (ctx, error) => console.error('server_error', error));
  made.on('grant.error', (ctx, error) => console.error('grant.error', error.message, error.error_detail));
  made.on('authorization.error', (ctx, error) => console.error('authorization.error', error.message));
  made.on('backchannel.error', (ctx, error) => console.error('backchannel.error', error.message));
  return made;
}

async function body(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString();
}

async function interaction(request, response) {
  const { prompt } = await provider.interactionDetails(request, response);
  if (prompt.name === 'consent') {
    return provider.interactionFinished(request, response, { consent: {} }, { mergeWithLastSubmission: true });
  }
  const login = request.method === 'POST' && new URLSearchParams(await body(request)).get('login');
  if (login && users[login]) {
    return provider.interactionFinished(request, response, { login: { accountId: login } });
  }
  response.setHeader('Content-Type', 'text/html; charset=utf-8');
  response.setHeader('Cache-Control', 'no-store');
  const field = '<label>Name <input name="login" autofocus></label>';
  response.end(page('Log in at the provider', `<form method="post">${field}<button>Log in</button></form>`));
}

const faults = new Map();
let held = [];

async function control(request, response) {
  const { path, fault, rotate } = JSON.parse(await body(request));
  if (rotate) provider = make(provider.issuer);
  if (path) {
    if (fault) faults.set(path, fault);
    else faults.delete(path);
    const go = held;
    held = [];
    for (const answer of go) answer();
  }
  response.end();
}

function huge(response) {
  response.setHeader('Content-Type', 'application/json');
  response.write('{"padding":"');
  const part = 'x'.repeat(64 << 10);
  let left = HUGE;
  const more = () => {
    for (; left > 0; left -= part.length) {
      if (!response.write(part)) {
        left -= part.length;
        return response.once('drain', more);
      }
    }
    return response.end('"}');
  };
  more();
}

function answer(request, response) {
  const { pathname } = new URL(request.url, provider.issuer);
  switch (faults.get(pathname)) {
    case 'down':
      return request.socket.destroy();
    case 'slow':
      return held.push(() => answer(request, response));
    case 'huge':
      return huge(response);
    case 'nonce':
      request.url = request.url.replace(/([?&]nonce=)[^&]*/, '$1of-somebody-else');
      break;
    default:
  }
  if (pathname.startsWith('/interaction/')) {
    return interaction(request, response).catch((error) => {
      console.error(error);
      response.statusCode = 400;
      response.end(page('Error of the provider', ''));
    });
  }
  return provider.callback()(request, response);
}

const server = createServer((request, response) => {
  if (request.url === '/control') return control(request, response);
  return answer(request, response);
});
server.listen(port, '127.0.0.1');
await once(server, 'listening');
let provider = make(`http://127.0.0.1:${server.address().port}`);
console.log(provider.issuer);
