// SPDX-License-Identifier: MIT OR Apache-2.0

// A user agent without a screen: requests over TLS exactly as they are written, and a cookie jar.

import { request as plain } from 'node:http';
import { request as encrypted } from 'node:https';

const MAX_REDIRECTS = 20;

export class Agent {
  // By the name of the host and that of the cookie, as browsers do: ports do not matter.
  cookies = new Map();

  cookie(url, name) {
    return this.cookies.get(`${new URL(url).hostname} ${name}`);
  }

  setCookie(url, name, value) {
    this.cookies.set(`${new URL(url).hostname} ${name}`, value);
  }

  // Sends a request, follows no redirect, and returns {url, status, headers, text, location}.
  async send(method, url, { form, headers = {} } = {}) {
    const { hostname, protocol } = new URL(url);
    const of = [...this.cookies].filter(([key]) => key.startsWith(`${hostname} `));
    const cookie = of.map(([key, value]) => `${key.slice(hostname.length + 1)}=${value}`).join('; ');
    const body = form === undefined ? undefined : typeof form === 'string' ? form : new URLSearchParams(form).toString();
    const all = {
      ...(cookie && { Cookie: cookie }),
      ...(body !== undefined && {
        'Content-Type': 'application/x-www-form-urlencoded',
        'Content-Length': Buffer.byteLength(body),
      }),
      ...headers,
    };
    const response = await new Promise((resolve, reject) => {
      const sent = (protocol === 'https:' ? encrypted : plain)(url, { method, headers: all, agent: false }, (received) => {
        const parts = [];
        received.on('data', (part) => parts.push(part));
        received.on('error', reject);
        received.on('end', () => resolve({ received, text: Buffer.concat(parts).toString() }));
      });
      sent.on('error', reject);
      sent.end(body);
    });
    const { statusCode: status, headers: received } = response.received;
    for (const line of received['set-cookie'] ?? []) this.#keep(hostname, line);
    const location = received.location === undefined ? undefined : new URL(received.location, url).href;
    return { url, status, headers: received, text: response.text, location };
  }

  #keep(hostname, line) {
    const [pair, ...attributes] = line.split(';').map((part) => part.trim());
    const at = pair.indexOf('=');
    const key = `${hostname} ${pair.slice(0, at)}`;
    const has = (pattern) => attributes.some((attribute) => pattern.test(attribute));
    const past = attributes.find((attribute) => /^expires=/i.test(attribute))?.slice(8);
    if (has(/^max-age=(0|-\d+)$/i) || (past && Date.parse(past) < Date.now())) this.cookies.delete(key);
    else this.cookies.set(key, pair.slice(at + 1));
  }

  get(url, options) {
    return this.send('GET', url, options);
  }

  post(url, form, headers) {
    return this.send('POST', url, { form, headers });
  }

  // Follows redirects until one leads to a URL that begins with `until`, whose URL it returns; or until there is none any more.
  async follow(response, until) {
    for (let i = 0; i < MAX_REDIRECTS; i += 1) {
      if (response.location === undefined) return { response };
      if (until && response.location.startsWith(until)) return { url: response.location, response };
      response = await this.get(response.location);
    }
    throw new Error(`there are too many redirects, the last of them to ${response.location}`);
  }
}

// Returns the value of a hidden field of a page.
export function hidden(html, name) {
  const input = html.match(new RegExp(`<input[^>]*name="?${name}"?[^>]*>`))?.[0];
  return input?.match(/value="?([^">\s]*)/)?.[1];
}
