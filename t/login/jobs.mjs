// SPDX-License-Identifier: MIT OR Apache-2.0

// Logins that serve jobs: the command of the user, and pages of the service in Chromium.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';

// Starts `workflow-token login` as a user of the cluster: LOGIN_AS is the beginning of its command, in JSON. Returns the address that it
// prints, and its end.
async function begin(site) {
  const [program, ...args] = JSON.parse(process.env.LOGIN_AS);
  const child = spawn(program, [...args, 'login', '--config', process.env.LOGIN_SITE, '--ca-file', `${process.cwd()}/ca.pem`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = once(child, 'close').then(([status]) => status);
  let text = '';
  child.stdout.setEncoding('utf8');
  child.stdout.on('data', (part) => (text += part));
  const address = await site.eventually(async () => {
    const found = /https:\/\/\S+/.exec(text);
    assert.ok(found && text.includes('shows the code'), text);
    return found[0];
  });
  return { address, ended, text: () => text };
}

// Allows the login at the page, and logs in at the provider anew if it asks.
async function allow(user, address, name) {
  await user.page.goto(address);
  await user.atProvider(name);
  await user.press('Allow');
  await user.atProvider(name);
}

export async function login(site) {
  const { address, ended, text } = await begin(site);
  const user = await site.user();
  await user.page.goto(address);
  await user.atProvider('alice');
  assert.ok((await user.text()).includes(site.users.alice));
  await user.screenshot('job-login-confirm');
  await user.press('Allow');
  await user.atProvider('alice');
  await user.page.waitForURL(`${site.issuer}/done`);
  await user.screenshot('job-login-done');
  assert.equal(await ended, 0);
  assert.ok(text().includes('You are logged in'), text());
  assert.deepEqual(user.problems, []);
}

// Another user than the one who runs the command cannot finish it.
export async function login_of_another(site) {
  const { address, ended } = await begin(site);
  const user = await site.user();
  await allow(user, address, 'bob');
  assert.ok((await user.text()).includes('another user'), await user.text());
  // The owner can, still.
  const owner = await site.user();
  await allow(owner, address, 'alice');
  assert.equal(await ended, 0);
}

// Whom a token is of, says the provider.
export async function token_of(site) {
  const response = await fetch(`${site.provider}/me`, {
    headers: { Authorization: `Bearer ${process.env.LOGIN_TOKEN}` },
  });
  assert.equal(response.status, 200);
  writeFileSync('token-of', (await response.json()).preferred_username);
}
