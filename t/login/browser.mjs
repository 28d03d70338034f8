// SPDX-License-Identifier: MIT OR Apache-2.0

// Chromium, with a context of its own for each user: no cookie of one is seen by another.

import { join } from 'node:path';

import { chromium } from 'playwright-core';

const TIMEOUT = 60_000;

export class Browser {
  #browser;

  static async start() {
    const browser = new Browser();
    const executablePath = process.env.LOGIN_CHROMIUM ?? '/usr/bin/chromium';
    // Its sandbox does not work for root, or in a container.
    browser.#browser = await chromium.launch({ executablePath, chromiumSandbox: false, args: ['--disable-gpu'] });
    return browser;
  }

  async user(site) {
    // The certificate is of an authority for this test.
    const context = await this.#browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 900, height: 700 } });
    context.setDefaultTimeout(TIMEOUT);
    return new User(site, context, await context.newPage());
  }

  end() {
    return this.#browser.close();
  }
}

// A user in front of a browser.
export class User {
  // What pages complain of: exceptions, and what their policy did not let them do.
  problems = [];

  constructor(site, context, page) {
    Object.assign(this, { site, context, page });
    page.on('pageerror', (error) => this.problems.push(`${page.url()}: ${error.message}`));
    page.on('console', (message) => {
      // A status that a test expects is none of the page's problems.
      const text = message.text();
      if (message.type() === 'error' && !text.includes('Failed to load resource')) this.problems.push(`${page.url()}: ${text}`);
    });
  }

  // Opens a page of the service.
  open(path) {
    return this.page.goto(this.site.issuer + path);
  }

  // Says who this is, if the provider asks. Returns whether it has.
  async atProvider(name) {
    if (!this.page.url().startsWith(`${this.site.provider}/interaction/`)) return false;
    await this.page.getByLabel('Name').fill(name);
    await this.press('Log in');
    return true;
  }

  // Logs in, and ends at /me.
  async logIn(name) {
    await this.open('/login?return=/me');
    await this.atProvider(name);
    await this.page.waitForURL(`${this.site.issuer}/me`);
  }

  // Presses the button of this name, and waits for the page that it leads to.
  async press(name) {
    const left = this.page.waitForEvent('framenavigated', (frame) => frame === this.page.mainFrame());
    await this.page.getByRole('button', { name }).click();
    await left.catch((error) => {
      throw new Error(`${name} leads nowhere: ${error.message} ${this.problems}`);
    });
    await this.page.waitForLoadState('load');
  }

  text() {
    return this.page.locator('body').innerText();
  }

  path() {
    return this.page.url().startsWith(this.site.issuer) ? this.page.url().slice(this.site.issuer.length) : undefined;
  }

  async cookie(name) {
    const cookies = await this.context.cookies(this.site.issuer);
    return cookies.find((cookie) => cookie.name === name);
  }

  async screenshot(name) {
    await this.page.screenshot({ path: join(process.env.LOGIN_SCREENSHOTS, `${name}.png`), fullPage: true });
  }
}
