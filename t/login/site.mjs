// SPDX-License-Identifier: MIT OR Apache-2.0

// Where the service and the provider are, and who logs in: the environment of these programs.

import { Agent } from './agent.mjs';
import { Browser } from './browser.mjs';

export const SESSION = '__Host-workflow-token';
export const LOGIN = '__Host-workflow-token-login';

export const isRedirection = ({ status }) => status === 302 || status === 303;

export class Site {
  issuer = process.env.LOGIN_ISSUER;
  provider = process.env.LOGIN_PROVIDER;
  // The users of the cluster that two accounts of the provider are.
  users = { alice: process.env.LOGIN_ALICE, bob: process.env.LOGIN_BOB };
  // A client with a secret.
  client = { id: 'copy', secret: process.env.LOGIN_SECRET };
  audience = 'copy-offload';
  #browser;

  // Returns a user in front of a browser of its own.
  async user() {
    this.#browser ??= await Browser.start();
    return this.#browser.user(this);
  }

  async end() {
    await this.#browser?.end();
  }

  // Returns a user agent that has gone to the provider for a login, and the URL there.
  async begin(path = '/login?return=/me', agent = new Agent()) {
    const response = await agent.get(this.issuer + path);
    if (!isRedirection(response)) throw new Error(`${path}: ${response.status}: ${response.text}`);
    return { agent, url: response.location };
  }

  // Logs in at the provider, if it asks, and returns the URL of the callback, which is not opened.
  async atProvider({ agent, url }, name) {
    const callback = `${this.issuer}/callback`;
    let { url: back, response } = await agent.follow(await agent.get(url), callback);
    if (!back && response.url.includes('/interaction/')) {
      ({ url: back, response } = await agent.follow(await agent.post(response.url, { login: name }), callback));
    }
    if (!back) throw new Error(`the provider does not lead back: ${response.status}: ${response.text}`);
    return back;
  }

  // Logs in, and returns the user agent and the answer of the callback.
  async logIn(name, begun) {
    begun ??= await this.begin();
    const response = await begun.agent.get(await this.atProvider(begun, name));
    return { agent: begun.agent, response };
  }

  // Returns whether a user agent has a session.
  async hasSession(agent) {
    const response = await agent.get(`${this.issuer}/me`);
    return response.status === 200;
  }

  // Has the provider do something.
  async control(what) {
    await fetch(`${this.provider}/control`, { method: 'POST', body: JSON.stringify(what) });
  }

  // Returns when an action succeeds, within a minute.
  async eventually(action) {
    const deadline = Date.now() + 60_000;
    for (;;) {
      try {
        return await action();
      } catch (error) {
        if (Date.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
    }
  }

  // Has requests to a path of the provider fail for as long as an action takes.
  async during(path, fault, action) {
    await this.control({ path, fault });
    try {
      return await action();
    } finally {
      await this.control({ path, fault: null });
    }
  }
}
