// SPDX-License-Identifier: MIT OR Apache-2.0

// Requests of attackers, exactly as they send them.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import { Agent, hidden } from './agent.mjs';
import { isRedirection, LOGIN, SESSION } from './site.mjs';

const isRefused = (response, what) => {
  assert.ok(response.status >= 400 && response.status < 500, `${what}: ${response.status} ${response.location}`);
};

// A login ends at a page of the service, whatever `return` says.
export async function open_redirects(site) {
  const { agent } = await site.logIn('alice');
  const { host } = new URL(site.issuer);
  for (const to of [
    '//evil.example', '///evil.example', '%2F%2Fevil.example', '/%5Cevil.example', '\\evil.example', '/%2f/evil.example',
    '/%252f/evil.example', '/%09/evil.example', '/%0D%0ALocation:%20//evil.example', 'https://evil.example',
    'https:evil.example', `https://${host}@evil.example`, `https://user@evil.example`, `https://${host}.evil.example/me`,
    '@evil.example', '.evil.example', 'javascript:alert(1)', 'data:text/html,x', '/me//../../evil', '//localhost:1/me', '%00/me',
  ]) {
    const response = await agent.get(`${site.issuer}/login?return=${to}`);
    if (response.status === 400) continue;
    assert.ok(isRedirection(response), `${to}: ${response.status}`);
    const back = await site.atProvider({ agent, url: response.location }, 'alice');
    const { location } = await agent.get(back);
    assert.equal(location, `${site.issuer}/me`, `${to} leads to ${location}`);
  }
  const { response } = await site.logIn('alice', await site.begin('/login', agent));
  assert.equal(response.location, `${site.issuer}/me`);
}

// A parameter that is there twice is refused, before anything is done with either value.
export async function duplicate_parameters(site) {
  const begun = await site.begin();
  const back = await site.atProvider(begun, 'alice');
  const { searchParams } = new URL(back);
  for (const name of ['code', 'state']) {
    isRefused(await begun.agent.get(`${back}&${name}=${searchParams.get(name)}`), `two ${name} at /callback`);
  }
  assert.equal(begun.agent.cookie(site.issuer, SESSION), undefined);
  isRefused(await begun.agent.get(`${site.issuer}/login?return=/me&return=/me`), 'two return at /login');
  const authorize = `${site.issuer}/authorize?client_id=cli&client_id=cli&response_type=code&redirect_uri=http://127.0.0.1:1/callback`;
  const response = await begun.agent.get(authorize);
  isRefused(response, 'two client_id at /authorize');
  for (const [path, form] of [
    ['/device_authorization', 'client_id=cli&client_id=cli'],
    ['/token', 'grant_type=refresh_token&grant_type=refresh_token&refresh_token=x&client_id=cli'],
    ['/token', 'grant_type=authorization_code&code=x&code=x&client_id=cli'],
    ['/backchannel-logout', 'logout_token=x&logout_token=x'],
  ]) {
    isRefused(await begun.agent.post(site.issuer + path, form), `${path}: ${form}`);
  }
}

// The answer of the provider is good once, in the browser whose login it is.
export async function state_is_of_this_browser(site) {
  const [alice, mallory] = [await site.begin(), await site.begin()];
  const back = await site.atProvider(alice, 'alice');
  const other = await site.atProvider(mallory, 'bob');
  const { searchParams } = new URL(back);
  const has = (agent) => agent.cookie(site.issuer, SESSION);
  const callback = (parameters) => `${site.issuer}/callback?${new URLSearchParams(parameters)}`;
  const code = searchParams.get('code');

  isRefused(await new Agent().get(back), 'a browser without a login in progress');
  isRefused(await mallory.agent.get(back), 'the login of another browser');
  assert.equal(has(mallory.agent), undefined);
  // That used up neither the code nor, in the browser of alice, the login.
  const stray = { agent: new Agent() };
  stray.agent.setCookie(site.issuer, LOGIN, alice.agent.cookie(site.issuer, LOGIN));
  isRefused(await stray.agent.get(callback({ code })), 'no state');
  isRefused(await stray.agent.get(callback({ code, state: 'x' })), 'another state');
  isRefused(await stray.agent.get(callback({ code, state: new URL(other).searchParams.get('state') })), 'the state of another');
  isRefused(await stray.agent.get(callback({ state: searchParams.get('state') })), 'no code');
  assert.equal(has(stray.agent), undefined);
}

// A login that was finished is not finished again: with the same cookie and URL, nobody else gets a session.
export async function callbacks_are_not_replayed(site) {
  const begun = await site.begin();
  const back = await site.atProvider(begun, 'alice');
  const login = begun.agent.cookie(site.issuer, LOGIN);
  const first = await begun.agent.get(back);
  assert.equal(first.location, `${site.issuer}/me`, first.text);
  const thief = new Agent();
  thief.setCookie(site.issuer, LOGIN, login);
  isRefused(await thief.get(back), 'a callback for the second time');
  assert.equal(thief.cookie(site.issuer, SESSION), undefined);
  assert.ok(await site.hasSession(begun.agent));
}

// A code of somebody else's login is of no use with one's own state: the provider knows the PKCE challenge of each.
export async function codes_are_not_swapped(site) {
  const [alice, mallory] = [await site.begin(), await site.begin()];
  const [back, other] = [await site.atProvider(alice, 'alice'), await site.atProvider(mallory, 'bob')];
  const swapped = new URL(back);
  swapped.searchParams.set('code', new URL(other).searchParams.get('code'));
  isRefused(await alice.agent.get(swapped.href), 'the code of another');
  assert.equal(alice.agent.cookie(site.issuer, SESSION), undefined);
}

// The request to the provider has all that binds its answer to this browser, and none of it twice.
export async function requests_are_bound(site) {
  const urls = [await site.begin(), await site.begin()].map(({ url }) => new URL(url).searchParams);
  for (const name of ['state', 'nonce', 'code_challenge']) {
    const [one, other] = urls.map((url) => url.get(name));
    assert.ok(one.length >= 22 && one !== other, `${name}: ${one} ${other}`);
  }
  const [url] = urls;
  assert.deepEqual(
    [url.get('response_type'), url.get('code_challenge_method'), url.get('redirect_uri'), url.get('client_id')],
    ['code', 'S256', `${site.issuer}/callback`, 'portal'],
  );
  assert.ok(url.get('scope').split(' ').includes('openid'));
  // The cookie of the login shows none of it.
  const { agent } = await site.begin();
  const cookie = agent.cookie(site.issuer, LOGIN);
  for (const name of ['state', 'nonce']) assert.ok(!cookie.includes(url.get(name)));
}

// A provider that does not know a PKCE challenge, or an attacker who took it away, gets nobody a session.
export async function pkce_and_nonce_are_required(site) {
  for (const name of ['code_challenge', 'code_challenge_method']) {
    const begun = await site.begin();
    const url = new URL(begun.url);
    url.searchParams.delete(name);
    const back = await site.atProvider({ agent: begun.agent, url: url.href }, 'alice');
    assert.ok(new URL(back).searchParams.get('error'), 'the provider refuses to go on');
    isRefused(await begun.agent.get(back), `no ${name}`);
    assert.equal(begun.agent.cookie(site.issuer, SESSION), undefined);
  }
  for (const change of [(url) => url.searchParams.delete('nonce'), (url) => url.searchParams.set('nonce', 'of-another')]) {
    const begun = await site.begin();
    const url = new URL(begun.url);
    change(url);
    const back = await site.atProvider({ agent: begun.agent, url: url.href }, 'alice');
    isRefused(await begun.agent.get(back), `${url}`);
    assert.equal(begun.agent.cookie(site.issuer, SESSION), undefined);
  }
}

// A cookie that was there before a login is not that of the session, and a login ends the former session.
export async function session_fixation(site) {
  const fixed = 'A'.repeat(43);
  const begun = await site.begin();
  begun.agent.setCookie(site.issuer, SESSION, fixed);
  await site.logIn('alice', begun);
  const first = begun.agent.cookie(site.issuer, SESSION);
  assert.notEqual(first, fixed);
  const attacker = new Agent();
  attacker.setCookie(site.issuer, SESSION, fixed);
  assert.ok(!(await site.hasSession(attacker)));
  // As somebody else, in the same browser.
  await site.logIn('alice', await site.begin('/login?return=/me', begun.agent));
  assert.notEqual(begun.agent.cookie(site.issuer, SESSION), first);
  attacker.setCookie(site.issuer, SESSION, first);
  assert.ok(!(await site.hasSession(attacker)), 'the former session goes on');
}

// A cookie of a login in progress is good as it is, or not at all.
export async function login_cookies_are_not_changed(site) {
  const begun = await site.begin();
  const back = await site.atProvider(begun, 'alice');
  const cookie = begun.agent.cookie(site.issuer, LOGIN);
  const flipped = cookie[20] === 'A' ? 'B' : 'A';
  for (const wrong of ['', 'x', cookie.slice(0, -4), cookie + cookie, cookie.slice(0, 20) + flipped + cookie.slice(21)]) {
    const agent = new Agent();
    agent.setCookie(site.issuer, LOGIN, wrong);
    isRefused(await agent.get(back), `the cookie ${wrong}`);
    assert.equal(agent.cookie(site.issuer, SESSION), undefined);
  }
}

// Every POST of a browser needs the token of the form, which is of this session, and comes from this origin.
export async function forgery(site) {
  const { agent } = await site.logIn('alice');
  const { agent: mallory } = await site.logIn('bob');
  const csrf = async (of) => hidden((await of.get(`${site.issuer}/me`)).text, 'csrf');
  const [own, other] = [await csrf(agent), await csrf(mallory)];
  assert.ok(own && other && own !== other, `${own} ${other}`);
  const device = await new Agent().post(`${site.issuer}/device_authorization`, { client_id: 'cli' });
  const { user_code } = JSON.parse(device.text);
  const foreign = { Origin: 'https://evil.example' };
  const cross = { 'Sec-Fetch-Site': 'cross-site' };
  for (const [path, form] of [['/logout', {}], ['/device', { user_code, decision: 'allow' }]]) {
    const at = site.issuer + path;
    for (const [what, response] of [
      ['no token', await agent.post(at, form)],
      ['an empty token', await agent.post(at, { ...form, csrf: '' })],
      ['the token of another', await agent.post(at, { ...form, csrf: other })],
      ['two tokens', await agent.post(at, new URLSearchParams([...Object.entries(form), ['csrf', own], ['csrf', other]]).toString())],
      ['another origin', await agent.post(at, { ...form, csrf: own }, foreign)],
      ['another method', await agent.get(`${at}?csrf=${own}&decision=allow`)],
    ]) {
      if (path === '/device' && what === 'another method') continue;
      isRefused(response, `${path} with ${what}`);
    }
  }
  assert.ok(await site.hasSession(agent), 'nobody logged out');
  const exchange = `${site.issuer}/session/token`;
  for (const headers of [{}, foreign, cross, { ...foreign, 'Sec-Fetch-Site': 'same-origin' }, { 'Sec-Fetch-Site': 'same-site' }]) {
    const response = await agent.post(exchange, '', headers);
    isRefused(response, `a token for ${JSON.stringify(headers)}`);
    assert.ok(!response.text.includes('eyJ'));
  }
  for (const logout_token of ['', 'x', 'eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.']) {
    isRefused(await agent.post(`${site.issuer}/backchannel-logout`, { logout_token }), `the logout token ${logout_token}`);
  }
  assert.ok(await site.hasSession(agent));
}

// A page of another site cannot log a user out, in a real browser.
export async function foreign_page(site) {
  const alice = await site.user();
  await alice.logIn('alice');
  await alice.page.route('http://evil.example/**', (route) =>
    route.fulfill({
      contentType: 'text/html',
      body: `<form method="post" action="${site.issuer}/logout"><input name="csrf" value="x"><button>Win</button></form>`,
    }),
  );
  await alice.page.goto('http://evil.example/');
  await alice.press('Win');
  await alice.open('/me');
  assert.equal(alice.path(), '/me', 'the session goes on');
  // Nor can it show the service in a frame.
  const response = await alice.page.goto(`${site.issuer}/me`);
  const policy = response.headers()['content-security-policy'] ?? '';
  assert.match(policy, /frame-ancestors 'none'/);
}

// Begins a session, and prints its cookie.
export async function short_session(site) {
  const { agent } = await site.logIn('alice');
  assert.ok(await site.hasSession(agent));
  console.log(`${SESSION} ${agent.cookie(site.issuer, SESSION)}`);
}

// That session has ended by itself, though the browser still sends the cookie.
export async function session_has_ended(site) {
  const [name, value] = readFileSync('short', 'utf8').trim().split(' ');
  const agent = new Agent();
  agent.setCookie(site.issuer, name, value);
  assert.ok(!(await site.hasSession(agent)));
}
