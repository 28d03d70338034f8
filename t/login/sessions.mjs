// SPDX-License-Identifier: MIT OR Apache-2.0

// Logins and logouts of people, in Chromium.

import assert from 'node:assert/strict';

import { Agent } from './agent.mjs';
import { LOGIN, SESSION } from './site.mjs';

// The service has the keys of the issuer.
export async function ready(site) {
  assert.equal((await new Agent().get(`${site.issuer}/readyz`)).status, 200);
}

// A user logs in, sees who that is, and logs out, here and at the provider.
export async function login_and_logout(site) {
  const alice = await site.user();
  await alice.open('/me');
  assert.ok(alice.page.url().startsWith(`${site.provider}/interaction/`), 'nobody sees /me without a session');
  await alice.screenshot('provider');
  await alice.atProvider('alice');
  assert.equal(alice.path(), '/me');
  assert.ok((await alice.text()).includes(site.users.alice), await alice.text());
  await alice.screenshot('me');
  const cookie = await alice.cookie(SESSION);
  assert.deepEqual(
    [cookie.secure, cookie.httpOnly, cookie.sameSite, cookie.path, cookie.domain],
    [true, true, 'Lax', '/', 'localhost'],
  );
  assert.equal(await alice.cookie(LOGIN), undefined, 'nothing is left of the login in progress');

  await alice.press('Log out');
  assert.ok(alice.page.url().startsWith(`${site.provider}/session/end`), alice.page.url());
  const asked = new URL(alice.page.url()).searchParams;
  assert.equal(asked.get('client_id'), 'portal');
  assert.equal(asked.get('post_logout_redirect_uri'), `${site.issuer}/logged-out`);
  assert.ok(asked.get('state'));
  assert.equal(await alice.cookie(SESSION), undefined, 'the session ends before that of the provider');
  await alice.press('Log out of the provider');
  assert.equal(alice.path().split('?')[0], '/logged-out');
  await alice.screenshot('logged-out');
  await alice.open('/me');
  assert.ok(alice.page.url().startsWith(`${site.provider}/interaction/`), 'the provider asks again who this is');
  assert.deepEqual(alice.problems, []);
}

// Two users in two browsers are two users, and the end of one session is not that of the other.
export async function two_users(site) {
  const [alice, bob] = [await site.user(), await site.user()];
  await Promise.all([alice.logIn('alice'), bob.logIn('bob')]);
  for (const [user, name, other] of [[alice, 'alice', 'bob'], [bob, 'bob', 'alice']]) {
    await user.open('/me');
    const text = await user.text();
    assert.ok(text.includes(site.users[name]) && !text.includes(site.users[other]), text);
  }
  await alice.press('Log out');
  await bob.open('/me');
  assert.equal(bob.path(), '/me');
}

// A cookie that was deleted, or was tampered with, is no session.
export async function cookies_deleted_and_tampered(site) {
  const alice = await site.user();
  await alice.logIn('alice');
  const { value } = await alice.cookie(SESSION);
  // Without the session of the provider, which would begin another one.
  const forget = () => alice.context.clearCookies({ domain: '127.0.0.1' });
  await forget();
  for (const wrong of [`${value.slice(0, -1)}${value.endsWith('A') ? 'B' : 'A'}`, value.slice(1), value + value, 'x', '../me']) {
    await alice.context.clearCookies({ name: SESSION });
    await alice.context.addCookies([{ name: SESSION, value: wrong, url: site.issuer, secure: true, httpOnly: true, sameSite: 'Lax' }]);
    await alice.open('/me');
    assert.ok(alice.page.url().startsWith(`${site.provider}/interaction/`), `${wrong}: ${alice.page.url()}`);
  }
  await alice.context.clearCookies({ name: SESSION });
  await alice.context.addCookies([{ name: SESSION, value, url: site.issuer, secure: true, httpOnly: true, sameSite: 'Lax' }]);
  await alice.open('/me');
  assert.equal(alice.path(), '/me', 'the right cookie is still good');
  await alice.context.clearCookies({ name: SESSION });
  await alice.open('/me');
  assert.ok(alice.page.url().startsWith(`${site.provider}/interaction/`));
}

// The provider ends its session, and tells the service.
export async function back_channel_logout(site) {
  const [alice, other, bob] = [await site.user(), await site.user(), await site.user()];
  await alice.logIn('alice');
  await other.logIn('alice');
  await bob.logIn('bob');
  await alice.page.goto(`${site.provider}/session/end`);
  await alice.press('Log out of the provider');
  await alice.open('/me');
  assert.ok(alice.page.url().startsWith(`${site.provider}/interaction/`), alice.page.url());
  for (const user of [other, bob]) {
    await user.open('/me');
    assert.equal(user.path(), '/me', 'other sessions of the provider go on');
  }
}

// A user whom the cluster does not know has no session, and sees why.
export async function unknown_user(site) {
  const ghost = await site.user();
  await ghost.open('/login?return=/me');
  await ghost.atProvider('ghost');
  assert.equal(ghost.path().split('?')[0], '/callback');
  assert.equal(await ghost.cookie(SESSION), undefined);
  await ghost.screenshot('unknown-user');
  await ghost.open('/me');
  assert.notEqual(ghost.path(), '/me');
}

// A user who is called like a script sees the name, and the browser runs nothing.
export async function names_are_text(site) {
  const eve = await site.user();
  await eve.page.addInitScript(() => {
    globalThis.attacked = () => {
      globalThis.wasAttacked = true;
    };
  });
  const safe = async (where) => {
    assert.equal(await eve.page.evaluate(() => globalThis.wasAttacked), undefined, where);
    assert.equal(await eve.page.locator('img[src="x"], script:not([src])').count(), 0, where);
  };
  await eve.logIn('eve');
  await safe('/me');
  await eve.screenshot('name-of-a-script');
  const script = encodeURIComponent('"><img src=x onerror=attacked()>');
  for (const path of [
    `/device?user_code=${script}`,
    `/callback?state=${script}&error=${script}&error_description=${script}`,
    `/logged-out?state=${script}`,
    `/login?return=${script}`,
    `/authorize?client_id=${script}&redirect_uri=${script}&response_type=code&state=${script}`,
  ]) {
    await eve.open(path);
    await safe(path);
  }
}
