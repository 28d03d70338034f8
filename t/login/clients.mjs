// SPDX-License-Identifier: MIT OR Apache-2.0

// What programs get: openid-client, with pages of the service in Chromium where a user has to agree.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { readFileSync } from 'node:fs';

import * as openid from 'openid-client';

import { Agent } from './agent.mjs';

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';

// A page may show the code first, to be sent by the user.
async function toDecision(user) {
  const go = user.page.getByRole('button', { name: 'Continue' });
  if (await go.count()) await user.press('Continue');
}

// The command-line tool, which has no secret.
const cli = (site) => openid.discovery(new URL(site.issuer), 'cli', undefined, openid.None());

// A service with a secret.
const copy = (site) => openid.discovery(new URL(site.issuer), site.client.id, undefined, openid.ClientSecretBasic(site.client.secret));

async function isActive(site, token) {
  return openid.tokenIntrospection(await copy(site), token);
}

// Logs in with the device flow: the user agrees in Chromium.
async function deviceLogin(site, name, shot) {
  const config = await cli(site);
  const device = await openid.initiateDeviceAuthorization(config, { audience: site.audience });
  assert.match(device.user_code, /^[A-Z0-9]{4}-[A-Z0-9]{4}$/);
  assert.equal(device.verification_uri, `${site.issuer}/device`);
  const user = await site.user();
  await user.page.goto(device.verification_uri_complete);
  await user.atProvider(name);
  await toDecision(user);
  const text = await user.text();
  assert.ok(text.includes('cli') && text.includes(device.user_code) && text.includes(site.users[name]), text);
  if (shot) await user.screenshot(`${shot}-confirm`);
  await user.press('Allow');
  if (shot) await user.screenshot(`${shot}-done`);
  assert.deepEqual(user.problems, []);
  return { config, user, tokens: await openid.pollDeviceAuthorizationGrant(config, device) };
}

export async function device_flow(site) {
  const { tokens } = await deviceLogin(site, 'alice', 'device');
  const claims = await isActive(site, tokens.access_token);
  assert.ok(claims.active);
  assert.equal(claims.sub, site.users.alice);
}

// The user who agrees is the one whose token it is, and is shown who that is and what it is for. One who denies ends it.
export async function device_login_of_another(site) {
  const config = await cli(site);
  const device = await openid.initiateDeviceAuthorization(config, { audience: site.audience });
  const bob = await site.user();
  await bob.logIn('bob');
  await bob.page.goto(device.verification_uri_complete);
  await toDecision(bob);
  const text = await bob.text();
  for (const shown of ['cli', device.user_code, site.users.bob]) assert.ok(text.includes(shown), `${shown} in ${text}`);
  await bob.screenshot('device-of-another');
  await bob.press('Deny');
  await bob.screenshot('device-denied');
  await assert.rejects(openid.pollDeviceAuthorizationGrant(config, device), (error) => error.error === 'access_denied');
  // What was decided is decided.
  await bob.page.goto(device.verification_uri_complete);
  await toDecision(bob);
  assert.equal(await bob.page.getByRole('button', { name: 'Allow' }).count(), 0);
}

// A code that nobody has, and one that was used.
export async function device_codes_are_good_once(site) {
  const { config, user } = await deviceLogin(site, 'alice');
  await user.open('/device?user_code=BCDF-GHJK');
  await toDecision(user);
  assert.equal(await user.page.getByRole('button', { name: 'Allow' }).count(), 0);
  await user.screenshot('device-unknown');
  const device = await openid.initiateDeviceAuthorization(config, { audience: site.audience });
  const form = { grant_type: 'urn:ietf:params:oauth:grant-type:device_code', device_code: device.device_code };
  const ask = (client_id) => new Agent().post(`${site.issuer}/token`, { ...form, client_id });
  const pending = await ask('cli');
  assert.equal(JSON.parse(pending.text).error, 'authorization_pending', pending.text);
  const early = await ask('cli');
  assert.equal(JSON.parse(early.text).error, 'slow_down', early.text);
  const other = await ask('other');
  assert.ok(['invalid_grant', 'invalid_client'].includes(JSON.parse(other.text).error), other.text);
}

// A refresh token is good once. Whoever uses it again ends all of the login.
export async function refresh(site) {
  const { config, tokens } = await deviceLogin(site, 'alice');
  assert.ok(tokens.refresh_token);
  const second = await openid.refreshTokenGrant(config, tokens.refresh_token);
  assert.notEqual(second.refresh_token, tokens.refresh_token);
  assert.equal((await isActive(site, second.access_token)).sub, site.users.alice);
  const third = await openid.refreshTokenGrant(config, second.refresh_token);
  const refused = (token) =>
    assert.rejects(openid.refreshTokenGrant(config, token), (error) => error.error === 'invalid_grant');
  await refused(tokens.refresh_token);
  await refused(third.refresh_token);
}

// A refresh token that its client revokes is good for nothing.
export async function refresh_tokens_are_revoked(site) {
  const { config, tokens } = await deviceLogin(site, 'alice');
  await openid.tokenRevocation(config, tokens.refresh_token, { token_type_hint: 'refresh_token' });
  await assert.rejects(openid.refreshTokenGrant(config, tokens.refresh_token), (error) => error.error === 'invalid_grant');
}

// The code flow of a command-line tool, which listens on loopback for the answer (RFC 8252).
export async function code_flow(site) {
  const config = await cli(site);
  const verifier = openid.randomPKCECodeVerifier();
  const state = openid.randomState();
  const server = createServer((request, response) => response.end('<!doctype html><title>Done</title>You may close this page.'));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const back = `http://127.0.0.1:${server.address().port}/callback`;
  const parameters = { redirect_uri: back, state, code_challenge_method: 'S256', audience: site.audience };
  parameters.code_challenge = await openid.calculatePKCECodeChallenge(verifier);
  const alice = await site.user();
  await alice.page.goto(openid.buildAuthorizationUrl(config, parameters).href);
  await alice.atProvider('alice');
  const text = await alice.text();
  assert.ok(text.includes('cli') && text.includes(site.users.alice), text);
  await alice.screenshot('authorize');
  await alice.press('Allow');
  const url = new URL(alice.page.url());
  assert.ok(url.href.startsWith(back), url.href);
  assert.deepEqual(alice.problems, []);
  const wrong = openid.authorizationCodeGrant(config, url, { pkceCodeVerifier: openid.randomPKCECodeVerifier(), expectedState: state });
  await assert.rejects(wrong, (error) => error.error === 'invalid_grant');
  // A code is used up by whoever tries it: the next one is that of another request.
  await alice.page.goto(openid.buildAuthorizationUrl(config, parameters).href);
  await alice.press('Allow');
  const again = new URL(alice.page.url());
  const checks = { pkceCodeVerifier: verifier, expectedState: state };
  const tokens = await openid.authorizationCodeGrant(config, again, checks);
  assert.equal((await isActive(site, tokens.access_token)).sub, site.users.alice);
  await assert.rejects(openid.authorizationCodeGrant(config, again, checks), (error) => error.error === 'invalid_grant');
  // A user who denies is sent back with that.
  await alice.page.goto(openid.buildAuthorizationUrl(config, parameters).href);
  await alice.press('Deny');
  assert.equal(new URL(alice.page.url()).searchParams.get('error'), 'access_denied');
  server.close();
}

// A request that does not say where to go, or says it wrongly, leads nowhere.
export async function authorize_is_strict(site) {
  const { agent } = await site.logIn('alice');
  const verifier = openid.randomPKCECodeVerifier();
  const good = {
    client_id: 'cli',
    response_type: 'code',
    redirect_uri: 'http://127.0.0.1:4711/callback',
    code_challenge: await openid.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    state: 'x',
  };
  const ask = (change) => {
    const parameters = Object.entries({ ...good, ...change }).filter(([, value]) => value !== undefined);
    return agent.get(`${site.issuer}/authorize?${new URLSearchParams(parameters)}`);
  };
  assert.equal((await ask({})).status, 200);
  for (const redirect_uri of [
    'http://localhost:4711/callback', 'http://127.0.0.1:4711/callback/x', 'http://127.0.0.1:4711/', 'https://127.0.0.1:4711/callback',
    'http://127.0.0.1@evil.example/callback', 'http://127.0.0.1.evil.example/callback', 'http://127.0.0.1:4711/callback?x=1',
    'http://127.0.0.1:4711/callback#x', 'http://user@127.0.0.1:4711/callback', 'javascript:alert(1)', '//127.0.0.1/callback',
    'http://127.0.0.1:4711/callback/../callback', undefined,
  ]) {
    const response = await ask({ redirect_uri });
    assert.ok(response.status === 400 && !response.location, `${redirect_uri}: ${response.status} ${response.location}`);
  }
  for (const change of [{ client_id: 'no-such' }, { client_id: undefined }, { client_id: site.client.id }]) {
    const response = await ask(change);
    assert.ok(response.status >= 400 && !response.location, `${JSON.stringify(change)}: ${response.status}`);
  }
  // The client is told what it did wrong, and gets no code.
  for (const change of [
    { code_challenge: undefined }, { code_challenge_method: undefined }, { code_challenge_method: 'plain' },
    { code_challenge: 'short' }, { response_type: 'token' }, { response_type: undefined },
  ]) {
    const response = await ask(change);
    const error = response.location && new URL(response.location).searchParams.get('error');
    assert.ok(response.status === 400 || error, `${JSON.stringify(change)}: ${response.status} ${response.location}`);
  }
}

// The session of a browser becomes a token, which is exchanged for a narrower one, introspected and revoked.
export async function exchange_introspection_and_revocation(site) {
  const { agent } = await site.logIn('alice');
  const headers = { 'Sec-Fetch-Site': 'same-origin', 'X-Requested-With': 'XMLHttpRequest' };
  const response = await agent.post(`${site.issuer}/session/token`, '', headers);
  assert.equal(response.status, 200, response.text);
  const { token, access_token } = JSON.parse(response.text);
  assert.equal(token, access_token);
  const config = await copy(site);
  const claims = await openid.tokenIntrospection(config, token);
  assert.ok(claims.active && claims.sub === site.users.alice, JSON.stringify(claims));
  const exchanged = await openid.genericGrantRequest(config, EXCHANGE, {
    subject_token: token,
    subject_token_type: ACCESS_TOKEN,
    audience: site.audience,
    lifetime: '60',
  });
  const narrow = await openid.tokenIntrospection(config, exchanged.access_token);
  assert.ok(narrow.active && narrow.exp <= claims.exp && narrow.exp - narrow.iat <= 60, JSON.stringify(narrow));
  await openid.tokenRevocation(config, exchanged.access_token);
  assert.deepEqual(await openid.tokenIntrospection(config, exchanged.access_token), { active: false });
  assert.ok((await openid.tokenIntrospection(config, token)).active);
  // Without a session there is none.
  const nobody = await new Agent().post(`${site.issuer}/session/token`, '', headers);
  assert.ok(nobody.status >= 400 && nobody.status < 500 && !nobody.text.includes('eyJ'), nobody.text);
}

// A token that is in a file.
export async function is_active(site) {
  const claims = await isActive(site, readFileSync(process.env.LOGIN_TOKEN, 'utf8').trim());
  console.log(JSON.stringify(claims));
}

// A token of a session, to a file, for other programs.
export async function session_token(site) {
  const { agent } = await site.logIn('alice');
  const headers = { 'Sec-Fetch-Site': 'same-origin', 'X-Requested-With': 'XMLHttpRequest' };
  const { text } = await agent.post(`${site.issuer}/session/token`, '', headers);
  console.log(JSON.parse(text).token);
}

// Authlib does what openid-client does; its user agrees in Chromium.
export async function authlib(site) {
  const child = spawn(process.env.LOGIN_PYTHON, [process.env.LOGIN_AUTHLIB], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(child, 'exit');
  for await (const line of createInterface({ input: child.stdout })) {
    console.log(line);
    if (!line.startsWith('open ')) continue;
    const alice = await site.user();
    await alice.page.goto(line.slice(5));
    await alice.atProvider('alice');
    await alice.press('Allow');
  }
  const [status] = await ended;
  assert.equal(status, 0);
}
