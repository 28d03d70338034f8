// SPDX-License-Identifier: MIT OR Apache-2.0

// Runs one test: an export of one of these programs, with the site.
//
//   node run.mjs PROGRAM TEST

import { Site } from './site.mjs';

const [program, name] = process.argv.slice(2);
const tests = await import(`./${program}.mjs`);
const site = new Site();
try {
  await tests[name](site);
  process.exitCode = 0;
} catch (error) {
  console.log(error);
  process.exitCode = 1;
} finally {
  await site.end();
}
