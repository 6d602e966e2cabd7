// Uploads zeros with one of Node's HTTP clients, then asks again on the same connection.
//
// node upload.mjs fetch|http length|chunked SIZE URL

import http from 'node:http';
import { Blob } from 'node:buffer';
import { Readable } from 'node:stream';

const [library, framing, size, url] = process.argv.slice(2);
const CHUNK = 65536;
const count = Number(size) / CHUNK;

function* zeros() {
  for (let i = 0; i < count; i++) yield new Uint8Array(CHUNK);
}

async function withFetch(method, path) {
  const request = { method };
  if (method === 'PUT' && framing === 'length') {
    // Parts of a blob are not copied.
    request.body = new Blob(Array(count).fill(new Blob([new Uint8Array(CHUNK)])));
  } else if (method === 'PUT') {
    const chunks = zeros();
    request.duplex = 'half';
    request.body = new ReadableStream({
      pull(controller) {
        const { value, done } = chunks.next();
        if (done) controller.close();
        else controller.enqueue(value);
      },
    });
  }
  const answer = await fetch(url + path, request);
  return [answer.status, await answer.text()];
}

const agent = new http.Agent({ keepAlive: true });

function withHttp(method, path) {
  return new Promise((resolve, reject) => {
    const headers = method === 'PUT' && framing === 'length' ? { 'Content-Length': size } : {};
    const request = http.request(url + path, { method, headers, agent }, async (answer) => {
      let body = '';
      for await (const part of answer) body += part;
      resolve([answer.statusCode, body]);
    });
    request.on('error', reject);
    // The answer may come first: then it does not matter how sending ends.
    if (method === 'PUT') Readable.from(zeros()).pipe(request);
    else request.end();
  });
}

const ask = library === 'fetch' ? withFetch : withHttp;
for (const [method, path] of [['PUT', '/a'], ['GET', '/']]) {
  const [status, body] = await ask(method, path);
  console.log(status, body);
}
process.exit();
