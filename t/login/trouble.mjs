// SPDX-License-Identifier: MIT OR Apache-2.0

// Logins while the provider is in trouble: they fail, with a page that says so, and the next one works.

import assert from 'node:assert/strict';

import { Agent } from './agent.mjs';
import { isRedirection, SESSION } from './site.mjs';

const DISCOVERY = ['/.well-known/openid-configuration', '/.well-known/oauth-authorization-server'];

// Answers of the service while the provider has a fault at a path of it. A login that began before gets no session.
async function failing(site, path, fault) {
  const begun = await site.begin();
  const back = await site.atProvider(begun, 'alice');
  const response = await site.during(path, fault, () => begun.agent.get(back));
  assert.ok(response.status >= 400, `${path} is ${fault}: ${response.status} ${response.location}`);
  assert.equal(begun.agent.cookie(site.issuer, SESSION), undefined);
  assert.ok(!/xxxxxxxx|127\.0\.0\.1|panic/.test(response.text), response.text.slice(0, 1000));
  // It is nobody's fault but the provider's, and over with it.
  const { agent } = await site.logIn('alice');
  assert.ok(await site.hasSession(agent));
}

export const down = (site) => failing(site, '/token', 'down');
export const slow = (site) => failing(site, '/token', 'slow');
export const huge = (site) => failing(site, '/token', 'huge');

// Users who are logged in see nothing of it.
export async function sessions_outlive_the_provider(site) {
  const { agent } = await site.logIn('alice');
  for (const path of [...DISCOVERY, '/token', '/jwks']) await site.control({ path, fault: 'down' });
  try {
    assert.ok(await site.hasSession(agent));
    const headers = { 'Sec-Fetch-Site': 'same-origin', 'X-Requested-With': 'XMLHttpRequest' };
    const response = await agent.post(`${site.issuer}/session/token`, '', headers);
    assert.equal(response.status, 200, response.text);
    // A login either goes to the provider, whose address is known, or says that there is none.
    const login = await agent.get(`${site.issuer}/login?return=/me`);
    assert.ok(isRedirection(login) || login.status >= 500, login.status);
  } finally {
    for (const path of [...DISCOVERY, '/token', '/jwks']) await site.control({ path, fault: null });
  }
}

// The provider replaces its keys between the moment that a user leaves for it and the one that the user comes back.
export async function keys_are_rotated(site) {
  await site.logIn('alice');
  const begun = await site.begin();
  await site.control({ rotate: true });
  const { agent, response } = await site.logIn('alice', begun);
  assert.equal(response.location, `${site.issuer}/me`, response.text);
  assert.ok(await site.hasSession(agent));
}

// It does so while nobody can fetch them, or while they are too long.
export async function keys_cannot_be_fetched(site) {
  for (const fault of ['down', 'huge']) {
    const begun = await site.begin();
    await site.control({ rotate: true });
    const back = await site.atProvider(begun, 'alice');
    const response = await site.during('/jwks', fault, () => begun.agent.get(back));
    assert.ok(response.status >= 400, `${fault}: ${response.status}`);
    assert.equal(begun.agent.cookie(site.issuer, SESSION), undefined);
    // The agent asks for keys once in a while.
    await site.eventually(async () => assert.ok(await site.hasSession((await site.logIn('alice')).agent)));
  }
}

// Nothing is known of the provider, since the agent was started a moment ago and gets 10 MB.
export async function break_discovery(site) {
  for (const path of DISCOVERY) await site.control({ path, fault: 'huge' });
}

export async function discovery_is_broken(site) {
  const response = await new Agent().get(`${site.issuer}/login?return=/me`);
  assert.ok(response.status >= 500, `${response.status} ${response.location}`);
  for (const path of DISCOVERY) await site.control({ path, fault: null });
  await site.eventually(() => site.begin());
}

// An identity token for another login is refused, though all else is right.
export async function wrong_nonce(site) {
  const begun = await site.begin();
  const back = await site.during('/auth', 'nonce', () => site.atProvider(begun, 'alice'));
  const response = await begun.agent.get(back);
  assert.ok(response.status >= 400 && response.status < 500, response.status);
  assert.equal(begun.agent.cookie(site.issuer, SESSION), undefined);
}
